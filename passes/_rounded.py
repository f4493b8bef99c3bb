"""Choose rounding-sound rules for the nodes of a bounded program, and name what has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from boundgraph.errors import Diagnostic
from boundgraph.ir.program import Attrs, Node, ProgramBuilder, Value
from boundgraph.ir.types import IntervalType
from boundgraph.ops import Kind, OpSpec
from boundgraph.ops._sound import SOUND, exact, why_not
from boundgraph.ops._sound_terms import attributes
from boundgraph.ops.bounded import INTERVAL

# Calls of torch functions whose results are exact for any operands.
_EXACT_CALLS = ("arange", "zeros", "ones", "full", "eye", "empty_like", "zeros_like", "ones_like")
_EXACT_CONSTANTS = ("zero_bias", "unsupported")


def computes_exactly(node: Node, spec: OpSpec | None) -> bool:
    """Whether a node of plain values gives exactly the real numbers that it stands for."""
    if spec is None:
        return False
    plain = [value for value in node.inputs if value.type.is_float]
    if not plain and not node.result.type.is_float:
        return True
    if node.op == "call":
        name = node.attrs["target"].split(".")[-1 if "aten" not in node.attrs["target"] else 1]
        return name in _EXACT_CALLS
    if spec.kind is Kind.CONSTANT:
        return node.op in _EXACT_CONSTANTS
    return exact(spec)


def carry_rounding(
    builder: ProgramBuilder, node: Node, spec: OpSpec | None, operands: Sequence[Value]
) -> tuple[list[Value], Diagnostic | None]:
    """Operands of a node of plain values, one of them as an interval where the node rounds.

    From there on the value is an interval that contains the real number it stands for.
    """
    given = list(operands)
    if computes_exactly(node, spec):
        return given, None
    assert spec is not None or node.op
    for position, value in enumerate(given):
        if spec is not None and value.type.is_float and spec.accepts(position):
            type_ = IntervalType(value.type.dtype, value.type.shape)
            given[position] = builder.add(
                "interval.point", (value,), type_, name=f"{value.name}_point".replace(".", "_")
            )
            return given, None
    target = node.attrs["target"] if node.op == "call" else node.op
    return given, Diagnostic(
        f"`{target}` computes a constant with rounding that no rule accounts for",
        node.span,
        "compute it before the model and store it as a buffer, or use rounding='nearest'",
    )


def sound_interval(
    node: Node,
    spec: OpSpec,
    operands: Sequence[Value],
    *,
    executed: bool = False,
    wide: bool = False,
) -> tuple[str, Attrs, Diagnostic | None]:
    """Name and attributes of the rounding-sound interval op of a node.

    A centred rule counts the roundings of the bound; with `executed` those of the network
    itself come on top, which are as many. The other rules count both already. With `wide`
    centres go through long sums in float64.
    """
    reason = why_not(spec)
    if executed and reason is None and spec.sound is not None:
        reason = "its rule is for the real function, not for what the network computes"
    values = (*operands, node.result)
    half = [v for v in values if v.type.is_float and v.type.dtype not in ("f32", "f64")]
    if half:
        reason = f"{half[0]} is {half[0].type.dtype}"
    if reason is not None:
        return INTERVAL + node.op, node.attrs, unsound(node, reason)
    attrs: dict[str, Any] = dict(node.attrs)
    attrs |= attributes(spec, operands, node, executed=executed, wide=wide)
    return INTERVAL + SOUND + node.op, Attrs(attrs), None


def unsound(node: Node, reason: str) -> Diagnostic:
    return Diagnostic(
        f"`{node.op}` has no rounding-sound rule: {reason}",
        node.span,
        "use rounding='nearest', whose bounds hold up to rounding, or bound the model up to it",
    )
