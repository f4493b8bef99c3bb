"""Batch normalisation takes away what a bias before it adds."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

from boundgraph.ir.program import Node, Program, Value
from boundgraph.ir.types import Stage
from boundgraph.passes.manager import Effect, Pass

_LAYERS = ("conv1d", "conv2d", "conv3d", "linear")
_NORMALIZE = ("batch_norm_train", "batch_mean", "batch_var")


@dataclass(frozen=True)
class AbsorbBias(Pass):
    """A clean layer before batch normalisation leaves out its bias; only the mean gets it.

    Normalisation subtracts the batch's mean, and the bias with it, so the normalised value
    and the variance do not depend on it. Adding it to every element, and summing the gradient
    of every element for it, are saved: on a GPU a kernel over the layer's whole output each.
    The mean that others read (running statistics, bounds) still holds the bias, so its
    gradient is the exact one, zero up to rounding.
    """

    name: ClassVar[str] = "absorb-bias"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, program: Program) -> Program:
        readers: dict[str, list[Node]] = defaultdict(list)
        for node in program.nodes:
            for value in node.inputs:
                readers[str(value)].append(node)
        outputs = {str(value) for value in program.outputs}
        biases: dict[str, Value] = {}
        nodes: list[Node] = []
        for node in program.nodes:
            key = str(node.result)
            if self._absorbs(node, readers[key]) and key not in outputs:
                biases[key] = node.inputs[2]
                node = Node(node.result, node.op, node.inputs[:2], node.attrs, node.span)
            elif node.op == "batch_mean" and str(node.inputs[0]) in biases:
                bare = Value(f"{node.result.name}_bare", node.result.type)
                nodes.append(Node(bare, node.op, node.inputs, node.attrs, node.span))
                node = Node(node.result, "add", (bare, biases[str(node.inputs[0])]))
            nodes.append(node)
        return program.with_nodes(nodes) if biases else program

    def _absorbs(self, node: Node, readers: list[Node]) -> bool:
        if node.op not in _LAYERS or len(node.inputs) != 3 or not readers:
            return False
        if node.op == "linear" and len(node.result.type.shape) != 2:
            return False
        ops = {reader.op for reader in readers}
        # Without a reader of the mean the bias would take no part in the program at all.
        return ops <= set(_NORMALIZE) and "batch_mean" in ops
