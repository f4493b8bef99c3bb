"""Trigonometric and hyperbolic functions and their inverses."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.ir.program import Value
from boundgraph.ops._kinds import elementwise
from boundgraph.ops._spec import Lowering, Rounding, lowers
from boundgraph.ops._spelling import spell, uniform
from boundgraph.ops.exponential import finite_ends, on_domain
from boundgraph.relaxations.curves import Convex, SinglePeak
from boundgraph.relaxations.fallback import Fallback
from boundgraph.relaxations.relaxation import roundoff
from boundgraph.relaxations.turns import Turn, between

aten = torch.ops.aten


def contains(x: Interval, point: float, period: float) -> Tensor:
    """Whether point + k·period lies in the interval for some integer k.

    Points that float arithmetic cannot tell from an end count: of large numbers only the
    magnitude is certain.
    """
    slack = roundoff(x.lower) * 16.0 * torch.maximum(x.lower.abs(), x.upper.abs())
    first = torch.ceil((x.lower - slack - point) / period)
    last = torch.floor((x.upper + slack - point) / period)
    return first <= last


def _wave(fn: Callable[[Tensor], Tensor], top: float) -> Callable[[Interval], Interval]:
    """The interval rule of sin or cos, whose maxima are at top + 2kπ."""

    def rule(x: Interval) -> Interval:
        ends = between(fn)(x)
        peak = contains(x, top, 2.0 * math.pi)
        trough = contains(x, top + math.pi, 2.0 * math.pi)
        return Interval(torch.where(trough, -1.0, ends.lower), torch.where(peak, 1.0, ends.upper))

    return rule


_sin, _cos = _wave(torch.sin, 0.5 * math.pi), _wave(torch.cos, 0.0)


def _sin_falls(x: Interval) -> Interval:
    """The slope of cos."""
    found = _sin(x)
    return Interval(-found.upper, -found.lower)


def _tan_interval(x: Interval) -> Interval:
    pole = contains(x, 0.5 * math.pi, math.pi)
    return Interval(
        torch.where(pole, -torch.inf, torch.tan(x.lower)),
        torch.where(pole, torch.inf, torch.tan(x.upper)),
    )


def _tan_slope(x: Interval) -> Interval:
    """1 + tan², least at kπ; the offsets that follow from infinity are given up."""
    ends = between(lambda points: 1.0 + torch.tan(points).square())(x)
    pole, valley = contains(x, 0.5 * math.pi, math.pi), contains(x, 0.0, math.pi)
    return Interval(torch.where(valley, 1.0, ends.lower), torch.where(pole, torch.inf, ends.upper))


elementwise(
    "sin",
    torch.sin,
    interval=_sin,
    curve=Fallback(_cos),
    rounding=Rounding(ulps=8),
    sample=uniform(-8.0, 8.0),
    summary="sine",
)
elementwise(
    "cos",
    torch.cos,
    interval=_cos,
    curve=Fallback(_sin_falls),
    rounding=Rounding(ulps=8),
    sample=uniform(-8.0, 8.0),
    summary="cosine",
)
elementwise(
    "tan",
    torch.tan,
    interval=_tan_interval,
    curve=Fallback(_tan_slope),
    rounding=Rounding(ulps=16),
    sample=uniform(-1.5, 1.5),
    summary="tangent; infinite bounds across its poles",
)
elementwise(
    "asin",
    torch.asin,
    interval=on_domain(torch.asin, -1.0, 1.0),
    curve=SinglePeak(
        lambda x: (1.0 - x.square()).rsqrt(),
        lambda s: (1.0 - s.pow(-2)).clamp(min=0.0).sqrt(),
        valley=True,
    ),
    rounding=Rounding(ulps=8),
    partial=True,
    sample=uniform(-1.0, 1.0),
    summary="inverse sine; no bound where x leaves [−1, 1]",
)
elementwise(
    "acos",
    torch.acos,
    interval=on_domain(torch.acos, -1.0, 1.0, falling=True),
    curve=SinglePeak(
        lambda x: -(1.0 - x.square()).rsqrt(), lambda s: (1.0 - s.pow(-2)).clamp(min=0.0).sqrt()
    ),
    magnitude=torch.ones_like,
    rounding=Rounding(ulps=8, terms=lambda *_, **__: 4),
    partial=True,
    sample=uniform(-1.0, 1.0),
    summary="inverse cosine; no bound where x leaves [−1, 1]",
)
elementwise(
    "atan",
    torch.atan,
    curve=SinglePeak(
        lambda x: (1.0 + x.square()).reciprocal(), lambda s: ((1.0 - s) / s).clamp(min=0.0).sqrt()
    ),
    rounding=Rounding(ulps=8),
    sample=uniform(),
    summary="inverse tangent",
)
elementwise(
    "sinh",
    torch.sinh,
    interval=lambda x: finite_ends(between(torch.sinh)(x)),
    curve=SinglePeak(torch.cosh, lambda s: torch.acosh(s.clamp(min=1.0)), valley=True),
    rounding=Rounding(ulps=16),
    sample=uniform(),
    summary="hyperbolic sine",
)
elementwise(
    "cosh",
    torch.cosh,
    interval=lambda x: finite_ends(between(torch.cosh, (Turn(0.0, 1.0, 1.0),))(x)),
    curve=Convex(torch.sinh, torch.asinh),
    rounding=Rounding(ulps=16),
    sample=uniform(),
    summary="hyperbolic cosine",
)
elementwise(
    "asinh",
    torch.asinh,
    curve=SinglePeak(
        lambda x: (1.0 + x.square()).rsqrt(),
        lambda s: ((1.0 - s) * (1.0 + s)).clamp(min=0.0).sqrt() / s,
    ),
    rounding=Rounding(ulps=16),
    sample=uniform(),
    summary="inverse hyperbolic sine",
)
elementwise(
    "acosh",
    torch.acosh,
    interval=on_domain(torch.acosh, 1.0),
    curve=Convex(
        lambda x: ((x - 1.0) * (x + 1.0)).rsqrt(),
        lambda s: (1.0 + s.pow(-2)).sqrt(),
        concave=True,
    ),
    rounding=Rounding(ulps=16),
    partial=True,
    sample=uniform(1.0, 6.0),
    summary="inverse hyperbolic cosine; no bound where x can be less than 1",
)
elementwise(
    "atanh",
    torch.atanh,
    interval=on_domain(torch.atanh, -1.0, 1.0),
    curve=SinglePeak(
        lambda x: ((1.0 - x) * (1.0 + x)).reciprocal(),
        lambda s: (1.0 - s.reciprocal()).clamp(min=0.0).sqrt(),
        valley=True,
    ),
    rounding=Rounding(ulps=16),
    partial=True,
    sample=uniform(-0.99, 0.99),
    summary="inverse hyperbolic tangent; no bound where x leaves [−1, 1]",
)


# Steepest slope of sin(πx)/(πx): π·max|d/dt sin(t)/t|, at t = 2.0816.
_SINC_SLOPE, _SINC_LEAST = 1.3704, -0.2173


def _sinc_interval(x: Interval) -> Interval:
    """The value at the centre and the steepest slope, within the range."""
    middle, reach = torch.sinc(x.center), x.radius * _SINC_SLOPE
    return Interval((middle - reach).clamp(min=_SINC_LEAST), (middle + reach).clamp(max=1.0))


elementwise(
    "sinc",
    torch.sinc,
    interval=_sinc_interval,
    magnitude=torch.ones_like,
    rounding=Rounding(ulps=8, terms=lambda *_, **__: 16),
    sample=uniform(),
    summary="sin(πx) / (πx)",
)
spell("sin")
spell("cos")
spell("tan")
spell("asin", "arcsin")
spell("acos", "arccos")
spell("atan", "arctan")
spell("sinh")
spell("cosh")
spell("asinh", "arcsinh")
spell("acosh", "arccosh")
spell("atanh", "arctanh")
spell("sinc")


@lowers(torch.deg2rad, "Tensor.deg2rad", aten.deg2rad.default)
def _(b: Lowering, input: Value) -> Value:
    return b.emit("mul_scalar", input, other=math.pi / 180.0)


@lowers(torch.rad2deg, "Tensor.rad2deg", aten.rad2deg.default)
def _(b: Lowering, input: Value) -> Value:
    return b.emit("mul_scalar", input, other=180.0 / math.pi)
