"""softmax, log_softmax and logsumexp."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm, sum_over
from boundgraph.domains.rounding import Outward, Precision, above, below
from boundgraph.ir.program import Value
from boundgraph.ops._dtypes import from_torch
from boundgraph.ops._spec import Kind, Lowering, OpCase, OpSpec, Rounding, lowers, register
from boundgraph.relaxations.exponentials import log_sum_exp, softmax_planes

aten = torch.ops.aten
# Roundings of a share: e^s carries |s| ulps, and is 0 below s = −745.
EXPONENT = 1024


def _log_odds(own: Tensor, others: Tensor, dim: int) -> Tensor:
    """`own_i − log Σ_{j≠i} e^{others_j}` for every i.

    Each sum is shifted by the largest entry that it contains: the largest of all, and for
    that entry itself the second largest. Then it is at least 1, so that taking entry i out
    of the total cancels nothing, and the shift is subtracted from `own` directly, because
    adding it back to the logarithm would round at the size of the entries.
    """
    top, position = others.max(dim, keepdim=True)
    is_top = torch.zeros_like(others, dtype=torch.bool).scatter(dim, position, True)
    without_top = others.masked_fill(is_top, -torch.inf)
    # A single entry has no others: a stand-in far below makes its odds huge.
    second = without_top.amax(dim, keepdim=True).clamp(min=-1e30)
    shares = (others - top).exp()
    rest = shares.sum(dim, keepdim=True) - shares
    rest_of_top = (without_top - second).exp().sum(dim, keepdim=True)
    total = torch.where(is_top, rest_of_top, rest).clamp(min=0.5)
    return (own - torch.where(is_top, second, top)) - total.log()


def _softmax_interval(x: Interval, *, dim: int) -> Interval:
    """softmax_i = σ(x_i − log Σ_{j≠i} e^{x_j}) rises in x_i and falls in every other x_j.

    So its extremes over a box are at corners: own end at one side, all others at the other.
    """
    return Interval(
        torch.sigmoid(_log_odds(x.lower, x.upper, dim)),
        torch.sigmoid(_log_odds(x.upper, x.lower, dim)),
    )


def _sound_log_odds(
    own: Tensor, others: Tensor, dim: int, terms: int, p: Precision, direction: int
) -> Tensor:
    """`_log_odds` rounded down (direction −1) or up.

    A share e^(o − top) is off by u·|o − top| in the exponent, which is below 104 (float32) or
    746 (float64) where the share counts at all, and by 8 ulps of exp. So the sum of the
    others, at least half the total of its own shift, has a relative error of at most
    2·(n + 762)·u, and its logarithm that much absolutely, plus 8 ulps of at most log n <= n.
    The two subtractions err by u·|own − top| <= u·(|odds| + log n) and u·|odds|.

    Args:
        terms: declared terms and ulps of the op, at least n + 16.
    """
    odds = _log_odds(own, others, dim)
    error = odds.abs() * (8.0 * p.unit) + (16.0 * terms + 4096.0) * p.unit
    moved = below(odds, error, p) if direction < 0 else above(odds, error, p)
    # What a mask hides is −∞ exactly.
    return torch.where(own == -torch.inf, own, moved)


def _softmax_sound(x: Outward, *, dim: int, terms: int, precision: Precision) -> Outward:
    # What is declared for the exponents of the network itself does not concern a bound.
    terms = terms - EXPONENT + 16
    lower = torch.sigmoid(_sound_log_odds(x.lower, x.upper, dim, terms, precision, -1))
    upper = torch.sigmoid(_sound_log_odds(x.upper, x.lower, dim, terms, precision, 1))
    share = 16.0 * precision.unit
    return Outward(
        below(lower, lower * share, precision).clamp(min=0.0),
        above(upper, upper * share, precision).clamp(max=1.0),
        precision,
    )


def _log_softmax_sound(x: Outward, *, dim: int, terms: int, precision: Precision) -> Outward:
    """−log(1 + e^t), with t the negated odds, of which it is 1-Lipschitz; 16 ulps for the rest."""
    low = _sound_log_odds(x.lower, x.upper, dim, terms, precision, -1)
    high = _sound_log_odds(x.upper, x.lower, dim, terms, precision, 1)
    lower = -torch.logaddexp(-low, torch.zeros_like(low))
    upper = -torch.logaddexp(-high, torch.zeros_like(high))
    share = 32.0 * precision.unit
    return Outward(
        below(lower, lower.abs() * share, precision),
        above(upper, upper.abs() * share, precision).clamp(max=0.0),
        precision,
    )


def _softmax_backward(
    form: LinearForm,
    pre: Interval,
    *,
    operand: int,
    carry: bool,
    sample_dims: tuple[int, ...],
    dim: int,
    **_: Any,
) -> LinearForm:
    """The planes of `softmax_planes`, for coefficients less a number that is returned at the end.

    Entries sum to 1, so `Σ C_i·y_i = κ + Σ (C_i − κ)·y_i` for any κ. The mean of the coefficients
    by the softmax at the centre makes what is left small, and 0 where they are all alike.
    """
    along = dim + 1
    planes = softmax_planes(
        pre, _softmax_interval(pre, dim=dim), _log_softmax_interval(pre, dim=dim), dim
    )
    sums = planes.sums
    shift = (form.coeff * sums.below.slope).sum(along, keepdim=True)
    left = form.coeff - shift
    positive, negative = torch.relu(left), -torch.relu(-left)
    lower, upper = positive * planes.low_factor, negative * planes.high_factor
    coeff = lower + upper
    # A lower bound subtracts an upper one of log Σ exp.
    coeff = coeff - lower.sum(along, keepdim=True) * sums.above.slope
    coeff = coeff - upper.sum(along, keepdim=True) * sums.below.slope
    if not carry:
        return LinearForm(coeff)
    term = positive * planes.low + negative * planes.high - coeff * sums.point
    return LinearForm(
        coeff, form.shifted(sum_over(term, sample_dims) + sum_over(shift, sample_dims))
    )


def _log_softmax_backward(
    form: LinearForm,
    pre: Interval,
    *,
    operand: int,
    carry: bool,
    sample_dims: tuple[int, ...],
    dim: int,
    **_: Any,
) -> LinearForm:
    """x_i − log Σ exp x: all entries share one log Σ exp, whose coefficient is minus their sum."""
    along = dim + 1
    sums = log_sum_exp(pre, (dim,))
    total = form.coeff.sum(along, keepdim=True)
    positive, negative = torch.relu(total), -torch.relu(-total)
    coeff = form.coeff - positive * sums.above.slope - negative * sums.below.slope
    if not carry:
        return LinearForm(coeff)
    whole = -(positive * sums.above.value + negative * sums.below.value)
    term = (form.coeff - coeff) * sums.point
    return LinearForm(
        coeff, form.shifted(sum_over(term, sample_dims) + sum_over(whole, sample_dims))
    )


def _sample(rng: random.Random) -> OpCase:
    shape = tuple(rng.randint(1, 5) for _ in range(rng.randint(1, 3)))
    return OpCase((shape,), {"dim": rng.randrange(len(shape))}, low=-6.0, high=6.0)


def _batch(batch_dims: Any, *_: Any, dim: int, **__: Any) -> int | None:
    return None if batch_dims[0] == dim else batch_dims[0]


register(
    OpSpec(
        "softmax",
        Kind.COMPOSITE,
        lambda x, *, dim: F.softmax(x, dim),
        interval=_softmax_interval,
        boundable=(0,),
        batch=_batch,
        rounding=Rounding(ulps=EXPONENT, terms=lambda x, *, dim: x.shape[dim] + 8),
        sound=_softmax_sound,
        backward=_softmax_backward,
        sample=_sample,
        summary="exact interval of each coordinate; linear bounds know that they sum to 1",
    )
)


def _log_softmax_interval(x: Interval, *, dim: int) -> Interval:
    """log_softmax_i = −softplus(−log odds of i), monotone in each coordinate."""
    # torch's softplus drops the correction above 20, which float64 can see.
    low, high = _log_odds(x.lower, x.upper, dim), _log_odds(x.upper, x.lower, dim)
    return Interval(
        -torch.logaddexp(-low, torch.zeros_like(low)),
        -torch.logaddexp(-high, torch.zeros_like(high)),
    )


def _log_magnitude(x: Tensor, *, dim: int) -> Tensor:
    """x_i − max x − log Σ is rounded at the size of its terms, also where they cancel."""
    return x + x.amax(dim, keepdim=True) + 1.0


register(
    OpSpec(
        "log_softmax",
        Kind.COMPOSITE,
        lambda x, *, dim: F.log_softmax(x, dim),
        interval=_log_softmax_interval,
        boundable=(0,),
        batch=_batch,
        magnitude=_log_magnitude,
        sound=_log_softmax_sound,
        rounding=Rounding(ulps=8, terms=lambda x, *, dim: x.shape[dim] + 8),
        backward=_log_softmax_backward,
        sample=_sample,
        summary="exact interval of each coordinate",
    )
)


def _sum_exp(x: Tensor, *, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return torch.logsumexp(x, dims, keepdim)


def _sum_exp_interval(x: Interval, **attrs: Any) -> Interval:
    return Interval(_sum_exp(x.lower, **attrs), _sum_exp(x.upper, **attrs))


def _sum_exp_sound(
    x: Outward, *, dims: tuple[int, ...], keepdim: bool, terms: int, precision: Precision
) -> Outward:
    """`top + log Σ e^(x − top)`, which rises in every entry.

    A share e^s with s <= 0 is off by u·|s| in the exponent, so by u·|s|·e^s < u/2, and by 8 ulps of
    exp. Their sum is at least 1 and has n of them, so that its relative error, and the absolute one
    of its logarithm, is below (2n + 16)·u; 8 ulps of log n <= n and a sum follow.

    Args:
        terms: declared terms and ulps of the op, at least n + 16.
    """
    lower, upper = (_sum_exp(end, dims=dims, keepdim=keepdim) for end in (x.lower, x.upper))
    low, high = (
        v.abs() * (8.0 * precision.unit) + 16.0 * terms * precision.unit for v in (lower, upper)
    )
    # Where everything is hidden it is −∞ exactly.
    return Outward(
        below(lower, low, precision),
        torch.where(upper == -torch.inf, upper, above(upper, high, precision)),
        precision,
    )


def _sum_exp_backward(
    form: LinearForm,
    pre: Interval,
    *,
    operand: int,
    carry: bool,
    sample_dims: tuple[int, ...],
    dims: tuple[int, ...],
    keepdim: bool,
    **_: Any,
) -> LinearForm:
    """A positive coefficient takes the plane below, a negative one that above."""
    sums = log_sum_exp(pre, dims)
    wide = form.coeff
    if not keepdim:
        for dim in sorted(dims):
            wide = wide.unsqueeze(dim + 1)
    positive, negative = torch.relu(wide), -torch.relu(-wide)
    coeff = positive * sums.below.slope + negative * sums.above.slope
    if not carry:
        return LinearForm(coeff)
    value = positive * sums.below.value + negative * sums.above.value
    at = tuple(dim + 1 for dim in dims)
    term = value - (coeff * sums.point).sum(at, keepdim=True)
    term = term if keepdim else term.squeeze(at)
    return LinearForm(coeff, form.shifted(sum_over(term, sample_dims)))


def _sum_exp_batch(batch_dims: Any, *_: Any, dims: Any, keepdim: bool, **__: Any) -> int | None:
    batch = batch_dims[0]
    if batch is None or batch in dims:
        return None
    return batch if keepdim else batch - sum(dim < batch for dim in dims)


def _sample_sum_exp(rng: random.Random) -> OpCase:
    shape = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 3)))
    dims = tuple(sorted(rng.sample(range(len(shape)), rng.randint(1, len(shape)))))
    return OpCase((shape,), {"dims": dims, "keepdim": rng.random() < 0.5}, low=-6.0, high=6.0)


register(
    OpSpec(
        "logsumexp",
        Kind.COMPOSITE,
        _sum_exp,
        interval=lambda x, **attrs: Interval(
            _sum_exp(x.lower, **attrs), _sum_exp(x.upper, **attrs)
        ),
        boundable=(0,),
        batch=_sum_exp_batch,
        # Beside the largest entry, the logarithm of at most n.
        magnitude=lambda x, *, dims, keepdim: x.abs().amax(dims, keepdim) + 1.0,
        rounding=Rounding(
            ulps=8, terms=lambda x, *, dims, keepdim: math.prod(x.shape[d] for d in dims) + 8
        ),
        sound=_sum_exp_sound,
        backward=_sum_exp_backward,
        sample=_sample_sum_exp,
        summary="log Σ exp over dimensions",
    )
)


@lowers(torch.logsumexp, "Tensor.logsumexp", aten.logsumexp.default)
def _(b: Lowering, input: Value, dim: Any, keepdim: bool = False) -> Value:
    dims = dim if isinstance(dim, tuple | list) else (dim,)
    dims = tuple(sorted(b.dim(input, d) for d in dims)) or tuple(range(len(b.shape(input))))
    return b.emit("logsumexp", input, dims=dims, keepdim=keepdim)


def _lower(op: str) -> Any:
    def lower(
        b: Lowering,
        input: Value,
        dim: Any = None,
        _stacklevel: Any = 3,
        dtype: torch.dtype | None = None,
    ) -> Value:
        # aten has the dtype behind the dimension, torch.nn.functional one further.
        target = _stacklevel if isinstance(_stacklevel, torch.dtype) else dtype
        if target is not None:
            if not (target.is_floating_point and input.type.is_float):
                return b.reject(f"{op} of {input.type.dtype} has no bound rule")
            if from_torch(target) != input.type.dtype:
                input = b.emit("cast", input, dtype=from_torch(target))
        if dim is None:
            return b.reject(f"{op} without dim= depends on the rank", help="pass dim explicitly")
        return b.emit(op, input, dim=b.dim(input, dim))

    return lower


lowers(F.softmax, torch.softmax, "Tensor.softmax", aten.softmax.int)(_lower("softmax"))
lowers(F.log_softmax, torch.log_softmax, "Tensor.log_softmax", aten.log_softmax.int)(
    _lower("log_softmax")
)
