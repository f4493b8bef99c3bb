"""Which constants may be −∞: those that only hide entries of a softmax."""

from __future__ import annotations

from typing import Any

from boundgraph.ir.program import Program

# Ops after which −∞ is still −∞ or gone, never NaN.
_KEEP = {
    *("where", "add", "call", "cast", "reshape", "permute", "expand", "slice", "select", "cat"),
    *("index_select", "detach", "meet", "tighten", "concretize"),
}
_ANSWER = {"softmax", "log_softmax", "logsumexp"}


def hiding(program: Program) -> frozenset[str]:
    """Names of the constants of which every way leads to a softmax.

    There −∞ means a weight of exactly 0. On any other way it could meet a 0 or another
    infinity, and what is then NaN could be hidden again.

    Args:
        program: bounded.
    """

    def holds_floats(type_: Any) -> bool:
        return str(getattr(type_, "dtype", "f32")).startswith("f")

    reached: dict[str, set[str]] = {str(p): {p.name} for p in program.params}
    refused: set[str] = set()
    for node in program.nodes:
        kind, _, op = node.op.rpartition(".")
        # The rows that attention takes a mean of are its last operand.
        given = node.inputs[-1:] if op == "attend" else node.inputs
        names = set().union(*(reached.get(str(value), set()) for value in given))
        if not names or op in _ANSWER or not holds_floats(node.result.type):
            continue
        if op not in _KEEP:
            refused |= names
        elif not kind.startswith("backward"):
            # A form's offset is finite, or its coefficient is not 0 there, and it is −∞.
            reached[str(node.result)] = names
    for value in program.outputs:
        refused |= reached.get(str(value), set())
    return frozenset(p.name for p in program.params) - refused
