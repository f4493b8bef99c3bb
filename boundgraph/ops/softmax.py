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


def _log_sum_of_others(x: Tensor, dim: int) -> Tensor:
    """`log Σ_{j≠i} e^{x_j}` for every i, by running sums from both sides.

    Taking the own entry out of the total would cancel where it dominates, and one shift
    shared by all entries would underflow where the others are far below it.
    """
    nothing = torch.full_like(x.narrow(dim, 0, 1), -1e30)
    size = x.shape[dim]
    before = torch.cat([nothing, x.logcumsumexp(dim)], dim).narrow(dim, 0, size)
    after = torch.cat([nothing, x.flip(dim).logcumsumexp(dim)], dim).narrow(dim, 0, size)
    return torch.logaddexp(before, after.flip(dim))


def _softmax_interval(x: Interval, *, dim: int) -> Interval:
    """softmax_i = σ(x_i − log Σ_{j≠i} e^{x_j}) rises in x_i and falls in every other x_j.

    So its extremes over a box are at corners: own end at one side, all others at the other.
    """
    return Interval(
        torch.sigmoid(x.lower - _log_sum_of_others(x.upper, dim)),
        torch.sigmoid(x.upper - _log_sum_of_others(x.lower, dim)),
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
        rounding=Rounding(ulps=64),
        sample=_sample,
        summary="exact interval of each coordinate",
    )
)


def _log_softmax_interval(x: Interval, *, dim: int) -> Interval:
    """log_softmax_i = −softplus(log Σ_{j≠i} e^{x_j} − x_i), monotone in each coordinate."""
    # torch's softplus drops the correction above 20, which float64 can see.
    low = _log_sum_of_others(x.upper, dim) - x.lower
    high = _log_sum_of_others(x.lower, dim) - x.upper
    return Interval(
        -torch.logaddexp(low, torch.zeros_like(low)),
        -torch.logaddexp(high, torch.zeros_like(high)),
    )


register(
    OpSpec(
        "log_softmax",
        Kind.COMPOSITE,
        lambda x, *, dim: F.log_softmax(x, dim),
        interval=_log_softmax_interval,
        boundable=(0,),
        batch=_batch,
        rounding=Rounding(ulps=64),
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
