"""What the registry has for each op, found out rather than written down."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from boundgraph.domains.interval import Interval
from boundgraph.ops import Kind, OpSpec, all_ops
from boundgraph.ops._sound import why_not
from boundgraph.testing._ops import draw_case


@dataclass(frozen=True)
class OpRow:
    """One line of the op table.

    Args:
        op, kind: name and kind of the op.
        interval, symbolic, linear: whether it has the rule: intervals, forward dependence on
            the input, backward linear bounds.
        rounding: `"sound"` where it has a rule under `rounding="sound"`, `"declared"` where
            only its floating-point error is declared, else `"none"`.
        training: whether a gradient reaches its bounded operands through the interval rule;
            None where that was not found out, for want of a rule or a sampler.
        tested: whether it has a sampler, so that the property tests draw cases of it.
    """

    op: str
    kind: str
    interval: bool
    symbolic: bool
    linear: bool
    rounding: str
    training: bool | None
    tested: bool


def op_table() -> tuple[OpRow, ...]:
    """The table of all registered ops, by name."""
    return tuple(op_row(spec) for spec in all_ops())


def op_row(spec: OpSpec) -> OpRow:
    """The line of one op."""
    rounding = "declared" if spec.rounding.declared else "none"
    if spec.kind is not Kind.CONSTANT and why_not(spec) is None:
        rounding = "sound"
    return OpRow(
        op=spec.name,
        kind=str(spec.kind),
        interval=spec.interval is not None,
        symbolic=spec.symbolic is not None,
        linear=spec.backward is not None,
        rounding=rounding,
        training=carries_gradient(spec),
        tested=spec.sample is not None,
    )


def carries_gradient(spec: OpSpec) -> bool | None:
    """Whether some operand's ends have a gradient through the interval rule, on a drawn case."""
    if spec.interval is None or spec.sample is None:
        return None
    drawn = draw_case(spec, random.Random(0))
    leaves: list[torch.Tensor] = []

    def leaf(tensor: torch.Tensor) -> torch.Tensor:
        leaves.append(tensor.detach().clone().requires_grad_())
        return leaves[-1]

    operands = [
        Interval(leaf(operand.lower), leaf(operand.upper))
        if isinstance(operand, Interval)
        else operand
        for operand in drawn.operands
    ]
    with torch.enable_grad():
        bounds = spec.interval(*operands, **drawn.attrs)
        total = bounds.lower.sum() + bounds.upper.sum()
    if not total.requires_grad:
        return False
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return any(gradient is not None for gradient in found)
