"""softmax and log_softmax."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.domains.interval import Interval
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
        rounding=Rounding(ulps=1024),
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
