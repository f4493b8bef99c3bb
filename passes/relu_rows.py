"""Backward forms through relu in one pass over their coefficients."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from boundgraph.ir.program import Attrs, Node, Program, Value
from boundgraph.ir.types import Stage
from boundgraph.ops.bounded import BACKWARD
from boundgraph.passes.manager import Effect, Pass
from boundgraph.passes.relu_steps import splits_rows

_WITH_BIAS = tuple(f"{BACKWARD}{name}" for name in ("linear", "conv1d", "conv2d", "conv3d"))


@dataclass(frozen=True)
class ReluRows(Pass):
    """`backward.relu` becomes `backward.relu_rows`, which takes the next layer's bias along.

    The same bounds and gradients with a gradient written by hand: each coefficient is read
    and written once forward, and once backward with its gradient. The bias of the layer that
    the form meets next multiplies the same coefficients, so it moves into that pass. For
    devices where moving coefficients is what a backward bound costs.
    """

    name: ClassVar[str] = "relu-rows"
    stage: ClassVar[Stage] = Stage.BOUNDED
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, program: Program) -> Program:
        reads = Counter(str(value) for node in program.nodes for value in node.inputs)
        reads.update(str(value) for value in program.outputs)
        made = {str(node.result): node for node in program.nodes if splits_rows(node)}
        biases: dict[str, Value] = {}
        nodes: list[Node] = []
        for node in program.nodes:
            source = str(node.inputs[0]) if node.inputs else ""
            if source in made and reads[source] == 1 and self._has_bias(node):
                biases[source] = node.inputs[2]
                shapes = node.attrs["shapes"][:2]
                attrs = Attrs(dict(node.attrs) | {"shapes": shapes})
                node = Node(node.result, node.op, node.inputs[:2], attrs, node.span)
            nodes.append(node)
        if not made:
            return program
        return program.with_nodes(
            [self._row_node(n, biases) if str(n.result) in made else n for n in nodes]
        )

    def _has_bias(self, node: Node) -> bool:
        if node.op not in _WITH_BIAS or len(node.inputs) != 3 or not node.attrs["carry"]:
            return False
        # The channels of a linear layer are the only dimension of its sample.
        rank = len(node.inputs[0].type.shape)
        return rank == 3 if node.op == f"{BACKWARD}linear" else True

    def _row_node(self, node: Node, biases: dict[str, Value]) -> Node:
        bias = biases.get(str(node.result))
        operands = node.inputs if bias is None else (*node.inputs, bias)
        return Node(node.result, f"{BACKWARD}relu_rows", operands, Attrs({}), node.span)
