"""Functions with jumps: sign, floor and its kin; and abs."""

from __future__ import annotations

import operator
import random
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.ir.program import Value
from boundgraph.ops._kinds import elementwise
from boundgraph.ops._spec import EXACT, Lowering, OpCase, Rounding, lowers
from boundgraph.ops._spelling import spell, uniform
from boundgraph.relaxations.piecewise import PiecewiseLinear
from boundgraph.relaxations.relaxation import Parallel
from boundgraph.relaxations.turns import Turn, between

aten = torch.ops.aten

elementwise(
    "abs",
    torch.abs,
    interval=between(torch.abs, (Turn(0.0, 0.0, 0.0),)),
    curve=PiecewiseLinear((Turn(0.0, 0.0, 0.0),)),
    rounding=EXACT,
    sample=uniform(),
    summary="|x|",
)
spell("abs", "absolute")
lowers(abs, operator.abs)(lambda b, input: b.emit("abs", input))


def _sign(x: Tensor) -> Tensor:
    # torch.sign(nan) is 0.
    return torch.where(x == x, torch.sign(x), x)


# Not "sign": `backward.sign` is what a walk does to its rows.
elementwise(
    "signum",
    _sign,
    curve=PiecewiseLinear((Turn(0.0, -1.0, 1.0),)),
    rounding=EXACT,
    sample=uniform(),
    summary="−1, 0 or 1",
)
spell("sign", "sgn", op="signum")

for _name in ("floor", "ceil", "trunc"):
    elementwise(
        _name,
        getattr(torch, _name),
        rounding=EXACT,
        sample=uniform(),
        summary={
            "floor": "largest integer not above x",
            "ceil": "smallest integer not below x",
            "trunc": "x rounded towards 0",
        }[_name],
    )
spell("floor")
spell("ceil")
spell("trunc", "fix")


def _round(x: Tensor, *, decimals: int) -> Tensor:
    return torch.round(x, decimals=decimals) if decimals else torch.round(x)


elementwise(
    "round",
    _round,
    magnitude=lambda x, *, decimals: x if decimals else torch.zeros_like(x),
    rounding=Rounding(terms=lambda *_, **__: 4),
    sample=uniform(decimals=(0, 0, 1)),
    summary="x rounded to a number of decimals, ties to even",
)


@lowers(torch.round, "Tensor.round", aten.round.default, aten.round.decimals)
def _(b: Lowering, input: Value, *, decimals: int = 0) -> Value:
    return b.emit("round", input, decimals=decimals)


def _frac_interval(x: Interval) -> Interval:
    """x − trunc(x) grows within a unit and jumps back; it has the sign of x."""
    together = torch.trunc(x.lower) == torch.trunc(x.upper)
    least = torch.where(x.lower < 0.0, -1.0, torch.where(x.lower >= 0.0, 0.0, torch.nan))
    most = torch.where(x.upper > 0.0, 1.0, torch.where(x.upper <= 0.0, 0.0, torch.nan))
    return Interval(
        torch.where(together, torch.frac(x.lower), least),
        torch.where(together, torch.frac(x.upper), most),
    )


elementwise(
    "frac",
    torch.frac,
    interval=_frac_interval,
    rounding=EXACT,
    sample=uniform(),
    summary="x − trunc(x)",
)
spell("frac")


def _heaviside(x: Tensor, values: Tensor) -> Tensor:
    # Not torch.heaviside, which has no derivative and gives 0 at NaN.
    at_zero = torch.where(x == 0, values, x)
    return torch.where(x > 0, 1.0, torch.where(x < 0, 0.0, at_zero))


def _heaviside_interval(x: Interval, values: Tensor) -> Interval:
    at_zero = (x.lower <= 0.0) & (x.upper >= 0.0)
    ends = between(lambda points: _heaviside(points, values))(x)
    poison = x.lower + x.upper - (x.lower + x.upper)
    return Interval(
        torch.where(at_zero, torch.minimum(ends.lower, values), ends.lower) + poison,
        torch.where(at_zero, torch.maximum(ends.upper, values), ends.upper) + poison,
    )


def _heaviside_parallel(x: Interval, values: Tensor) -> Parallel:
    found = _heaviside_interval(x, values)
    return Parallel(torch.zeros_like(found.center), found.center, found.radius)


def _sample_heaviside(rng: random.Random) -> OpCase:
    shape = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 3)))
    return OpCase((shape, shape))


elementwise(
    "heaviside",
    _heaviside,
    interval=_heaviside_interval,
    parallel=_heaviside_parallel,
    rounding=EXACT,
    sample=_sample_heaviside,
    summary="0 below 0, 1 above, given values at 0",
)


@lowers(torch.heaviside, "Tensor.heaviside", aten.heaviside.default)
def _(b: Lowering, input: Value, values: Value) -> Value:
    if b.depends(values):
        return b.reject("heaviside with values that depend on the region has no bound rule")
    return b.emit("heaviside", *b.broadcast(input, values))


@lowers(torch.nan_to_num, "Tensor.nan_to_num", aten.nan_to_num.default)
def _(b: Lowering, input: Value, nan: Any = None, posinf: Any = None, neginf: Any = None) -> Value:
    return b.reject(
        "nan_to_num replaces what no bound can speak of: a NaN is in no interval",
        help="remove it; a bound that is not finite is reported anyway",
    )
