"""A linear form carried through relu with a gradient of its own, for GPU code generators.

The rows of a form are the largest tensors of a backward bound. What automatic differentiation
makes of `LinearForm.through` reads and writes them several times; here forward reads each
coefficient once and writes it once, and the gradient reads it and its gradient once and writes
one. Nothing of that size is stored but the coefficients that the layers' own gradients need.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.function import once_differentiable

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm

# Rows up to which the gradient's code is written out row by row.
UNROLLED = 16


def _chord(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The slope λ = u/(u − l) of the chord of `relu_lines`, l and u cut at 0, and (u − l)/2.

    The rest follows from them: the offset of the chord is λ(1 − λ)(u − l), and the lower line
    has slope 1 where λ > ½, 0 elsewhere. Two numbers per element are all that is stored.
    """
    half = upper.clamp(min=0.0) * 0.5
    # Halves, since the width itself may overflow, and would give a slope of 0.
    width = half - lower.clamp(max=0.0) * 0.5
    width = torch.where(width > 0, width, 1.0)
    return half / width, width


def _offset(share: Tensor, width: Tensor) -> Tensor:
    return share * (1.0 - share) * (width * 2.0)


def _wide(value: Tensor, rank: int) -> Tensor:
    """With dimensions of size 1 at the end."""
    return value.reshape(*value.shape, *(1,) * (rank - value.dim()))


class _ReluRows(torch.autograd.Function):
    """Coefficients, offsets, and sums of coefficients, the last without a gradient."""

    @staticmethod
    def forward(
        coeff: Tensor, lower: Tensor, upper: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        share, width = _chord(lower, upper)
        positive, negative = torch.relu(coeff), -torch.relu(-coeff)
        new = positive * (share > 0.5) + negative * share
        spatial = tuple(range(3, coeff.dim()))
        term = negative * _offset(share, width)
        if bias is not None:
            term = term + new * bias.reshape(1, -1, *(1,) * len(spatial))
        if not spatial:
            return new, term.sum(2), new.new_zeros(())
        # First over the positions of a channel: one pass that also writes `new`.
        return new, term.sum(spatial).sum(2), new.sum(spatial)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        coeff, lower, upper, bias = inputs
        ctx.mark_non_differentiable(output[2])
        sums = output[2] if coeff.dim() > 3 else output[0]
        ctx.save_for_backward(coeff, lower, upper, bias, sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_term: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        coeff, lower, upper, bias, sums = ctx.saved_tensors
        share, width = _chord(lower, upper)
        offset = _offset(share, width)
        rank = coeff.dim()
        channels = None if bias is None else bias.reshape(1, -1, *(1,) * (rank - 3))

        def row(a: Tensor, g: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Gradients of one row's coefficients, and its part of those of λ and offset."""
            if channels is not None:
                g = g + t * channels
            negative = -torch.relu(-a)
            chord = torch.where(a < 0, g * share + t * offset, 0.0)
            return torch.where(a > 0, g * (share > 0.5), chord), g * negative, t * negative

        terms = _wide(grad_term, rank)
        if coeff.shape[0] <= UNROLLED:
            # Sums over rows written out, so that they are made where rows are read.
            rows = [row(*parts) for parts in zip(coeff, grad, terms, strict=True)]
            new = torch.stack([found[0] for found in rows])
            of_share = sum_of([found[1] for found in rows])
            of_offset = sum_of([found[2] for found in rows])
        else:
            new, of_share, of_offset = row(coeff, grad, terms)
            of_share, of_offset = of_share.sum(0), of_offset.sum(0)
        # A unit that does not cross 0 has share 0 or 1, lines that do not depend on its bounds.
        rest = 1.0 - share
        of_share = torch.where(share * rest > 0, of_share * 0.5 / width, 0.0)
        of_offset = torch.where(share * rest > 0, of_offset, 0.0)
        of_lower = share * (of_share - of_offset * share)
        of_upper = rest * (of_share + of_offset * rest)
        of_bias = None
        if bias is not None:
            of_bias = (grad_term.unsqueeze(2) * sums).sum((0, 1))
        # Joined, so that both are finished here and not where they are read.
        of_lower, of_upper = torch.stack((of_lower, of_upper))
        return new, of_lower, of_upper, of_bias


def sum_of(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def relu_rows(
    coeff: Tensor, lower: Tensor, upper: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`relu_lines` under coefficients, and the offset that the lines and a bias before add.

    The lower line has the adaptive slope of `relu_lines`. Gradients can be taken once.

    Args:
        coeff: `[rows, batch, *features]`, on relu(x).
        lower, upper: bounds of x, `[batch, *features]`.
        bias: what x's layer adds to each channel (dimension 0 of the features), or None.

    Returns:
        Coefficients on x, and offsets `[rows, batch]`: the coefficients times the bias included.
    """
    new, term, _ = _ReluRows.apply(coeff, lower, upper, bias)  # type: ignore[no-untyped-call]
    return new, term


def relu_form(form: LinearForm, pre: Interval, *bias: Tensor) -> LinearForm:
    """`backward.relu`, and the offset of the layer before it, through `relu_rows`."""
    operands = (form.coeff, pre.lower, pre.upper, *bias)
    found: Any
    if isinstance(form.coeff, fx.Proxy):
        # Recorded as one call: its gradient is not what its body would give.
        found = form.coeff.tracer.create_proxy("call_function", relu_rows, operands, {})
    else:
        found = relu_rows(*operands)
    return LinearForm(found[0], form.shifted(found[1]))
