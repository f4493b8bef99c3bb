"""Backward forms through relu and the layer before it as one step, for training on a CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from boundgraph.ir.program import Attrs, Node, Program
from boundgraph.ir.types import Dim, FormType, Stage
from boundgraph.ops.bounded import BACKWARD
from boundgraph.passes.manager import Effect, Pass

STEP = f"{BACKWARD}relu_step"


@dataclass(frozen=True)
class ReluSteps(Pass):
    """`backward.relu` and the `backward.linear` or `backward.conv2d` after it become one step.

    The same bounds and gradients, with a gradient written by hand that keeps one tensor of the
    form's size and walks few rows at a time (`domains/relu_steps.py`).
    """

    name: ClassVar[str] = "relu-steps"
    stage: ClassVar[Stage] = Stage.BOUNDED
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, program: Program) -> Program:
        reads = Counter(str(value) for node in program.nodes for value in node.inputs)
        reads.update(str(value) for value in program.outputs)
        relus = {str(node.result): node for node in program.nodes if splits_rows(node)}
        if not relus:
            return program
        merged: dict[str, Node] = {}
        nodes: list[Node] = []
        for node in program.nodes:
            source = str(node.inputs[0]) if node.inputs else ""
            if source in relus and reads[source] == 1 and _is_layer(node):
                merged[source] = node
                node = _step(relus[source], node)
            nodes.append(node)
        return program.with_nodes(
            [
                _step(node) if str(node.result) in relus else node
                for node in nodes
                if str(node.result) not in merged
            ]
        )


def splits_rows(node: Node) -> bool:
    """Relu on a form whose rows differ between samples, with samples in front; no free slope."""
    if node.op != f"{BACKWARD}relu" or len(node.inputs) != 2 or not node.attrs["carry"]:
        return False
    if node.attrs.get("parallel"):
        return False
    shape = node.inputs[0].type.shape
    own_rows = len(shape) > 2 and isinstance(shape[1], Dim)
    return own_rows and node.attrs["sample_dims"] == tuple(range(2, len(shape)))


def _is_layer(node: Node) -> bool:
    if node.op not in (f"{BACKWARD}linear", f"{BACKWARD}conv2d") or not node.attrs["carry"]:
        return False
    form, *parameters = node.inputs
    sizes = [entry for value in parameters for entry in value.type.shape]
    if node.op == f"{BACKWARD}linear":
        # The channels of a linear layer are the only dimension of its sample.
        return len(form.type.shape) == 3 and not _dynamic(sizes)
    return node.attrs["groups"] == 1 and not _dynamic([*sizes, *node.attrs["shapes"][0][2:]])


def _dynamic(sizes: Sequence[object]) -> bool:
    return any(isinstance(entry, Dim) for entry in sizes)


def _step(relu: Node, layer: Node | None = None) -> Node:
    if layer is None:
        return Node(relu.result, STEP, relu.inputs, Attrs({}), relu.span)
    attrs = {}
    if layer.op == f"{BACKWARD}conv2d":
        attrs = {name: layer.attrs[name] for name in ("stride", "padding", "dilation")}
        attrs["size"] = layer.attrs["shapes"][0][2:]
    operands = (*relu.inputs, *layer.inputs[1:])
    assert isinstance(layer.result.type, FormType)
    return Node(layer.result, STEP, operands, Attrs(attrs), relu.span)
