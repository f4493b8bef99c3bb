"""Ops written as others, so that a rule for those serves them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from boundgraph.ir.program import Node, Program, Value
from boundgraph.ir.types import Stage
from boundgraph.passes.manager import Effect, Pass


@dataclass(frozen=True)
class DecomposeExtremes(Pass):
    """max(a, b) is b + relu(a − b), and min(a, b) is b − relu(b − a).

    A symbolic rule of `maximum` bounds the difference by what both operands have in common. A
    backward walk can do so only from the difference itself, so that has to be a value.
    """

    name: ClassVar[str] = "decompose-extremes"
    stage: ClassVar[Stage] = Stage.CONCRETE
    # The same function, but its intervals are wider: the difference forgets what b was.
    effect: ClassVar[Effect] = Effect.RELAXES

    def run(self, program: Program) -> Program:
        names = {value.name for value in (*program.inputs, *(n.result for n in program.nodes))}
        nodes: list[Node] = []
        for node in program.nodes:
            split = node.op in ("maximum", "minimum") and node.result.type.is_float
            nodes += _parts(node, names) if split else [node]
        return program if len(nodes) == len(program.nodes) else program.with_nodes(nodes)


def _parts(node: Node, names: set[str]) -> list[Node]:
    a, b = node.inputs
    larger = node.op == "maximum"

    def fresh(ending: str) -> Value:
        name = f"{node.result.name}_{ending}"
        while name in names:
            name += "_"
        names.add(name)
        return Value(name, node.result.type)

    gap, positive = fresh("gap"), fresh("excess")
    return [
        Node(gap, "sub", (a, b) if larger else (b, a), span=node.span),
        Node(positive, "relu", (gap,), span=node.span),
        Node(node.result, "add" if larger else "sub", (b, positive), span=node.span),
    ]
