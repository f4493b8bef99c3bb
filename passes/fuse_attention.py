"""A softmax and the product that reads it become one op, whose bounds are tighter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from boundgraph.ir.program import Attrs, Node, Program
from boundgraph.ir.types import Stage
from boundgraph.passes.manager import Effect, Pass


@dataclass(frozen=True)
class FuseAttention(Pass):
    """`matmul(softmax(s), v)` is `attend(s, v)`.

    The product of two values does not know that the weights sum to one. The softmax stays for
    those who read the weights themselves.
    """

    name: ClassVar[str] = "fuse-attention"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.TIGHTER

    def run(self, program: Program) -> Program:
        made = {str(node.result): node for node in program.nodes}
        nodes = [
            self._fused(node, made.get(str(node.inputs[0]))) if node.inputs else node
            for node in program.nodes
        ]
        return program if nodes == list(program.nodes) else program.with_nodes(nodes)

    def _fused(self, node: Node, weights: Node | None) -> Node:
        if node.op != "matmul" or weights is None or weights.op != "softmax":
            return node
        scores, values = weights.inputs[0], node.inputs[1]
        rank = len(scores.type.shape)
        alike = scores.type.shape[:-2] == values.type.shape[:-2] and rank >= 2
        if not alike or weights.attrs["dim"] != rank - 1 or not scores.type.is_float:
            return node
        return Node(node.result, "attend", (scores, values), Attrs({}), node.span)
