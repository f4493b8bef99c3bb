"""A linear form carried through relu and the layer before it, in portions of rows, on a CPU.

The rows of a form are the largest tensors of a backward bound, and between two layers
automatic differentiation would pass over them twenty times and keep five of them. Here a step
keeps the coefficients that it was given and nothing else of their size: what enters the layer
is made again, portion by portion, where gradients need it, and passes over a portion find it in
the cache. `relu_rows` is the same for code generators, which put passes together by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.autograd.function import once_differentiable

from boundgraph.domains.interval import Interval
from boundgraph.domains.interval_steps import channels_last
from boundgraph.domains.linear_form import LinearForm
from boundgraph.domains.relu_rows import relu_rows
from boundgraph.domains.transposed import transposed

# Elements of a portion: a quarter of a form's where that lies between these. More at a time keep
# more for a gradient; fewer were slower, 225 ms against 270 ms at batch 128 with the least.
_LEAST, _MOST = 1 << 17, 1 << 20


class Layer(NamedTuple):
    """The layer whose transpose follows the relu.

    Args:
        size: height and width of a convolution's operand; empty for a linear layer.
        stride, padding, dilation: of a convolution.
    """

    size: tuple[int, ...] = ()
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def carry(self, coeff: Tensor, weight: Tensor) -> Tensor:
        """Coefficients `[rows, batch, *features]` on the layer's operand."""
        if not self.size:
            return torch.matmul(coeff, weight)
        found = transposed(
            coeff.flatten(0, 1),
            weight,
            self.size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )
        return found.unflatten(0, coeff.shape[:2])

    def gradients(
        self, grad: Tensor, coeff: Tensor, weight: Tensor, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Those of `carry`'s arguments, the second only where it is wanted."""
        if not self.size:
            of_weight = torch.matmul(coeff.flatten(0, 1).T, grad.flatten(0, 1)) if wanted else None
            return torch.matmul(grad, weight.T), of_weight
        # The convolution itself: its output is the gradient, and its weight's is the same.
        folded, values = coeff.flatten(0, 1), channels_last(grad.flatten(0, 1))
        new = torch.conv2d(values, weight, None, self.stride, self.padding, self.dilation)
        of_weight = None
        if wanted:
            _, of_weight, _ = torch.ops.aten.convolution_backward(
                folded, values, weight, None, self.stride, self.padding, self.dilation,
                False, (0, 0), 1, (False, True, False),
            )  # fmt: skip
        return channels_last(new.unflatten(0, coeff.shape[:2])), of_weight


class _Lines(NamedTuple):
    """The lines of `relu_lines`: the lower slope, what the upper one has more, its offset."""

    lower: Tensor
    more: Tensor
    offset: Tensor

    @classmethod
    def of(cls, share: Tensor, width: Tensor) -> _Lines:
        """From λ = u/(u − l) and (u − l)/2, with l and u cut at 0."""
        lower = (share > 0.5).to(share.dtype)
        offset = (1.0 - share).mul_(share).mul_(width).mul_(2.0)
        return cls(lower, share - lower, offset)

    def apply(self, coeff: Tensor, negative: Tensor) -> Tensor:
        return (coeff * self.lower).addcmul_(negative, self.more)


def _portions(coeff: Tensor) -> Iterator[slice]:
    rows, row = len(coeff), max(1, coeff[0].numel())
    step = max(1, min(max(rows * row // 4, _LEAST), _MOST) // row)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _wide(term: Tensor, rank: int) -> Tensor:
    return term.reshape(*term.shape, *(1,) * (rank - 2))


def _flat(value: Tensor, lead: int) -> Tensor:
    """A sample's elements as one dimension behind `lead` others, in their order of memory."""
    if value.dim() == lead + 3 and value.shape[lead] > 1:
        value = value.movedim(lead, -1)
    return value.flatten(lead)


def _by_channel(coeff: Tensor) -> Tensor:
    """Sums over positions, `[rows, batch, channels]`."""
    return coeff.sum(tuple(range(3, coeff.dim()))) if coeff.dim() > 3 else coeff


def _chord(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """As in `relu_rows`: halves, so that no width overflows to infinity."""
    half = upper.clamp(min=0.0).mul_(0.5)
    width = half - lower.clamp(max=0.0).mul_(0.5)
    # Where and not masked_fill, which takes ten times as long.
    width = torch.where(width == 0, 1.0, width)
    return half.div_(width), width


class _ReluStep(torch.autograd.Function):
    """Coefficients on the layer's operand, offsets; and the chord, which has no gradient."""

    @staticmethod
    def forward(
        coeff: Tensor,
        lower: Tensor,
        upper: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        layer: Layer,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        share, width = _chord(lower, upper)
        lines = _Lines.of(share, width)
        columns = _flat(lines.offset, 1).unsqueeze(2)
        found, terms = [], []
        for part in _portions(coeff):
            a = coeff[part]
            negative = a.clamp(max=0.0)
            term = torch.bmm(_flat(negative, 2).transpose(0, 1), columns).squeeze(2).T
            new = lines.apply(a, negative)
            if bias is not None:
                term = term + torch.matmul(_by_channel(new), bias)
            found.append(new if weight is None else layer.carry(new, weight))
            terms.append(term)
        if len(found) == 1:
            return found[0], terms[0].contiguous(), share, width
        # Folded, since torch keeps the order of memory only in four dimensions.
        whole = torch.cat([part.flatten(0, 1) for part in found]).unflatten(0, coeff.shape[:2])
        return whole, torch.cat(terms), share, width

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        coeff, _, _, weight, bias, ctx.layer = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(coeff, weight, bias, *output[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_term: Tensor, *_: Any) -> tuple[Any, ...]:
        coeff, weight, bias, share, width = ctx.saved_tensors
        lines = _Lines.of(share, width)
        sums = _Sums(bias)
        grad = channels_last(grad) if ctx.layer.size or weight is None else grad.contiguous()
        of_coeff = torch.empty_like(coeff)
        of_weight: Tensor | None = None
        for part in _portions(coeff):
            a, t = coeff[part], grad_term[part]
            negative = a.clamp(max=0.0)
            g = grad[part]
            if weight is not None or bias is not None:
                new = lines.apply(a, negative)
                sums.add_bias(new, t)
                if weight is not None:
                    wanted = ctx.needs_input_grad[3]
                    g, more = ctx.layer.gradients(g, new, weight, wanted)
                    of_weight = more if of_weight is None else of_weight.add_(more)
                del new
            if bias is not None:
                g = g + _wide(t, a.dim()) * bias.reshape(-1, *(1,) * (a.dim() - 3))
            sums.add(negative, g, t)
            chord = (g * lines.more).addcmul_(_wide(t, a.dim()), lines.offset)
            # Kept where a is negative.
            chord = torch.ops.aten.hardtanh_backward(chord, a, -math.inf, 0.0)
            torch.addcmul(chord, g, lines.lower, out=of_coeff[part])
        of_lower, of_upper = sums.ends(share, width)
        return of_coeff, of_lower, of_upper, of_weight, sums.bias, None


def _unflat(value: Tensor, shape: torch.Size) -> Tensor:
    """`[batch, elements]` from `_flat` as the value that it was."""
    if len(shape) == 4 and shape[1] > 1:
        return value.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    return value.view(shape)


class _Sums:
    """Gradients of what all rows share, added up over portions."""

    def __init__(self, bias: Tensor | None) -> None:
        self.share: Tensor | None = None
        self.offset: Tensor | None = None
        self.bias = None if bias is None else torch.zeros_like(bias)

    def add_bias(self, new: Tensor, term: Tensor) -> None:
        if self.bias is not None:
            self.bias += torch.mv(_by_channel(new).flatten(0, 1).T, term.flatten())

    def add(self, negative: Tensor, grad: Tensor, term: Tensor) -> None:
        for row, of_row in zip(negative, grad, strict=True):
            if self.share is None:
                self.share = row * of_row
            else:
                self.share.addcmul_(row, of_row)
        columns = torch.bmm(term.T.unsqueeze(1), _flat(negative, 2).transpose(0, 1)).squeeze(1)
        found = _unflat(columns, negative.shape[1:])
        self.offset = found if self.offset is None else self.offset.add_(found)

    def ends(self, share: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the interval's ends."""
        assert self.share is not None and self.offset is not None
        rest = 1.0 - share
        # A unit that does not cross 0 has λ = 0 or 1, lines that do not depend on its bounds.
        crosses = share * rest > 0
        of_share = torch.where(crosses, self.share.div_(width).mul_(0.5), 0.0)
        of_offset = torch.where(crosses, self.offset, 0.0)
        of_lower = (of_share - of_offset * share).mul_(share)
        return of_lower, of_offset.mul_(rest).add_(of_share).mul_(rest)


def relu_step(
    coeff: Tensor,
    lower: Tensor,
    upper: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    layer: tuple[Any, ...],
) -> tuple[Tensor, Tensor]:
    """`relu_lines` under coefficients, then the transpose of the layer before the relu.

    The lower line has the adaptive slope of `relu_lines`. Gradients can be taken once.

    Args:
        coeff: `[rows, batch, *features]`, on relu(x).
        lower, upper: bounds of x, `[batch, *features]`.
        weight: of the layer that makes x; None leaves it out.
        bias: what that layer adds to each channel (dimension 0 of the features), or None.
        layer: the fields of `Layer`.

    Returns:
        Coefficients on the layer's operand (on x without a layer), and offsets `[rows, batch]`:
        the coefficients times the bias included.
    """
    made = Layer(*layer)
    if torch.compiler.is_compiling():
        new, term = relu_rows(coeff, lower, upper, bias)
        return new if weight is None else made.carry(new, weight), term
    coeff, lower, upper = (channels_last(value) for value in (coeff, lower, upper))
    found = _ReluStep.apply(coeff, lower, upper, weight, bias, made)  # type: ignore[no-untyped-call]
    return found[0], found[1]


def step_form(
    form: LinearForm,
    pre: Interval,
    *parameters: Tensor,
    size: tuple[int, ...] = (),
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, ...] = (0, 0),
    dilation: tuple[int, ...] = (1, 1),
) -> LinearForm:
    """`backward.relu` and the backward rule of the layer before it, through `relu_step`."""
    weight, bias = (*parameters, None, None)[:2]
    layer = (size, stride, padding, dilation)
    operands = (form.coeff, pre.lower, pre.upper, weight, bias, layer)
    found: Any
    if isinstance(form.coeff, fx.Proxy):
        # Recorded as one call: its gradient is not what its body would give.
        found = form.coeff.tracer.create_proxy("call_function", relu_step, operands, {})
    else:
        found = relu_step(*operands)
    return LinearForm(found[0], form.shifted(found[1]))
