"""Mixtures that a gate makes become one op, whose bounds take each operand once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from boundgraph.ir.program import Attrs, Node, Program, Value
from boundgraph.ir.types import Stage
from boundgraph.passes.manager import Effect, Pass


@dataclass(frozen=True)
class FuseGates(Pass):
    """`(1 − w)·a + w·b` and `a + w·(b − a)` are `blend(a, b, w)`.

    The sum of two intervals does not know that what one product gains the other loses. Where the
    weight is fixed the sum is linear already, and stays.

    Args:
        bounded: names of the inputs that carry a region.
    """

    bounded: tuple[str, ...]

    name: ClassVar[str] = "fuse-gates"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.TIGHTER

    def run(self, program: Program) -> Program:
        made = {str(node.result): node for node in program.nodes}
        depends = {str(v) for v in program.inputs if v.name in self.bounded}
        nodes = []
        for node in program.nodes:
            if any(str(value) in depends for value in node.inputs):
                depends.add(str(node.result))
            found = _mixture(node, made)
            if found is not None and str(found[2]) in depends and _alike(node, found):
                node = Node(node.result, "blend", found, Attrs({}), node.span)
            nodes.append(node)
        return program if nodes == list(program.nodes) else program.with_nodes(nodes)


Mixture = tuple[Value, Value, Value]


def _alike(node: Node, found: Mixture) -> bool:
    return node.result.type.is_float and all(v.type == node.result.type for v in found)


def _mixture(node: Node, made: dict[str, Node]) -> Mixture | None:
    """Start, end and weight of a mixture."""
    if node.op != "add":
        return None
    left, right = node.inputs
    return (
        _shares(made.get(str(left)), made.get(str(right)), made)
        or _moves(left, made.get(str(right)), made)
        or _moves(right, made.get(str(left)), made)
    )


def _shares(one: Node | None, two: Node | None, made: dict[str, Node]) -> Mixture | None:
    """(1 − w)·a + w·b, in any order."""
    if one is None or two is None or (one.op, two.op) != ("mul", "mul"):
        return None
    for first, second in ((one, two), (two, one)):
        for rest, start in (first.inputs, first.inputs[::-1]):
            weight = _complement(made.get(str(rest)), made)
            for own, end in (second.inputs, second.inputs[::-1]):
                if weight is not None and own == weight:
                    return start, end, weight
    return None


def _moves(start: Value, step: Node | None, made: dict[str, Node]) -> Mixture | None:
    """a + w·(b − a)."""
    if step is None or step.op != "mul":
        return None
    for weight, gap in (step.inputs, step.inputs[::-1]):
        difference = made.get(str(gap))
        if difference is not None and difference.op == "sub" and difference.inputs[1] == start:
            return start, difference.inputs[0], weight
    return None


def _complement(node: Node | None, made: dict[str, Node]) -> Value | None:
    """w of 1 − w."""
    if node is None or node.op != "add_scalar" or node.attrs["other"] != 1:
        return None
    negated = made.get(str(node.inputs[0]))
    return negated.inputs[0] if negated is not None and negated.op == "neg" else None
