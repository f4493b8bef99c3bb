"""softmax and log_softmax."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.rounding import Outward, Precision, above, below
from boundgraph.ir.program import Value
from boundgraph.ops._spec import Kind, Lowering, OpCase, OpSpec, Rounding, lowers, register

aten = torch.ops.aten


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
    return below(odds, error, p) if direction < 0 else above(odds, error, p)


def _softmax_sound(x: Outward, *, dim: int, terms: int, precision: Precision) -> Outward:
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
        # e^s carries |s| ulps, and it is 0 below s = −745.
        rounding=Rounding(ulps=1024, terms=lambda x, *, dim: x.shape[dim] + 8),
        sound=_softmax_sound,
        sample=_sample,
        summary="exact interval of each coordinate",
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
        sample=_sample,
        summary="exact interval of each coordinate",
    )
)


def _lower(op: str) -> Any:
    def lower(b: Lowering, input: Value, dim: Any = None, *args: Any, **kwargs: Any) -> Value:
        if kwargs.get("dtype") is not None or any(isinstance(a, torch.dtype) for a in args):
            return b.reject(f"{op} with dtype= has no bound rule")
        if dim is None:
            return b.reject(f"{op} without dim= depends on the rank", help="pass dim explicitly")
        return b.emit(op, input, dim=b.dim(input, dim))

    return lower


lowers(F.softmax, torch.softmax, "Tensor.softmax", aten.softmax.int)(_lower("softmax"))
lowers(F.log_softmax, torch.log_softmax, "Tensor.log_softmax", aten.log_softmax.int)(
    _lower("log_softmax")
)
