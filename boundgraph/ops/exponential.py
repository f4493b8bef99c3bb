"""Exponentials, logarithms, roots, powers and the reciprocal."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.ir.program import Value
from boundgraph.ops._kinds import elementwise
from boundgraph.ops._spec import Lowering, Rounding, lowers
from boundgraph.ops._spelling import spell, uniform
from boundgraph.relaxations.curves import Convex, OneSided, SinglePeak
from boundgraph.relaxations.relaxation import Curve
from boundgraph.relaxations.turns import Turn, between

aten = torch.ops.aten
Fn = Callable[[Tensor], Tensor]
LN2, LN10 = math.log(2.0), math.log(10.0)


def finite_below(fn: Fn) -> Callable[[Interval], Interval]:
    """The interval rule of an increasing function that overflows.

    Where it does its value lies above every finite number, and below infinity.
    """
    return lambda x: Interval(torch.nan_to_num(fn(x.lower), nan=torch.nan), fn(x.upper))


def finite_ends(x: Interval) -> Interval:
    """What overflows lies between the largest number and infinity, of either sign."""
    largest = torch.nan_to_num(torch.full_like(x.lower, torch.inf))
    return Interval(torch.minimum(x.lower, largest), torch.maximum(x.upper, -largest))


def on_domain(
    fn: Fn,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    falling: bool = False,
    beyond: float = math.nan,
) -> Callable[[Interval], Interval]:
    """The interval rule of a monotone function with a domain.

    Beyond it torch gives NaN, and so does the rule: an infinite bound would become finite
    again behind a clamp, and a network that computes NaN would be certified. Where the
    function is merely not monotone, `beyond` is infinity.
    """

    def rule(x: Interval) -> Interval:
        inside = (x.lower >= low) & (x.upper <= high)
        first, last = (x.upper, x.lower) if falling else (x.lower, x.upper)
        return Interval(
            torch.where(inside, fn(first), -beyond), torch.where(inside, fn(last), beyond)
        )

    return rule


elementwise(
    "exp",
    torch.exp,
    interval=finite_below(torch.exp),
    curve=Convex(torch.exp, torch.log),
    rounding=Rounding(ulps=8),
    sample=uniform(),
    summary="eˣ",
)
elementwise(
    "exp2",
    torch.exp2,
    interval=finite_below(torch.exp2),
    curve=Convex(lambda x: torch.exp2(x) * LN2, lambda s: torch.log2(s / LN2)),
    rounding=Rounding(ulps=8),
    sample=uniform(),
    summary="2ˣ",
)
elementwise(
    "expm1",
    torch.expm1,
    interval=finite_below(torch.expm1),
    curve=Convex(torch.exp, torch.log),
    rounding=Rounding(ulps=8),
    sample=uniform(),
    summary="eˣ − 1",
)

_LOGS: tuple[tuple[str, Fn, float, float, str], ...] = (
    ("log", torch.log, 0.0, 1.0, "natural logarithm"),
    ("log2", torch.log2, 0.0, LN2, "logarithm to base 2"),
    ("log10", torch.log10, 0.0, LN10, "logarithm to base 10"),
    ("log1p", torch.log1p, 1.0, 1.0, "log(1 + x)"),
)


def _log_curve(shift: float, scale: float) -> Convex:
    return Convex(
        lambda x: 1.0 / ((x + shift) * scale), lambda s: 1.0 / (s * scale) - shift, concave=True
    )


for _name, _fn, _shift, _scale, _text in _LOGS:
    elementwise(
        _name,
        _fn,
        partial=True,
        interval=on_domain(_fn, -_shift),
        curve=_log_curve(_shift, _scale),
        rounding=Rounding(ulps=8),
        sample=uniform(0.01, 4.0),
        summary=f"{_text}; no bound where the operand leaves the domain",
    )

elementwise(
    "sqrt",
    torch.sqrt,
    interval=on_domain(torch.sqrt, 0.0),
    curve=Convex(lambda x: 0.5 * x.rsqrt(), lambda s: 0.25 / s.square(), concave=True),
    rounding=Rounding(ulps=1),
    partial=True,
    sample=uniform(0.0, 4.0),
    summary="√x; no bound where the operand can be negative",
)
elementwise(
    "rsqrt",
    torch.rsqrt,
    interval=on_domain(torch.rsqrt, 0.0, falling=True),
    curve=Convex(
        lambda x: -0.5 * x.rsqrt() / x, lambda s: (-2.0 * s).clamp(min=0.0).pow(-2.0 / 3.0)
    ),
    rounding=Rounding(ulps=4),
    partial=True,
    sample=uniform(0.05, 4.0),
    summary="1/√x; no bound where the operand can be negative",
)
elementwise(
    "square",
    torch.square,
    interval=between(torch.square, (Turn(0.0, 0.0, 0.0),)),
    curve=Convex(lambda x: 2.0 * x, lambda s: 0.5 * s),
    rounding=Rounding(ulps=1),
    sample=uniform(),
    summary="x²",
)
spell("exp")
spell("exp2")
spell("expm1")
spell("log")
spell("log2")
spell("log10")
spell("log1p")
spell("sqrt")
spell("rsqrt")
spell("square")


def _reciprocal_interval(x: Interval) -> Interval:
    """Decreasing on each side of 0; unbounded where the operand can be 0."""
    safe = (x.lower > 0.0) | (x.upper < 0.0)
    lower = torch.where(safe, 1.0 / torch.where(safe, x.upper, 1.0), -torch.inf)
    upper = torch.where(safe, 1.0 / torch.where(safe, x.lower, 1.0), torch.inf)
    return Interval(lower, upper)


RECIPROCAL = OneSided(Convex(lambda x: -x.square().reciprocal(), lambda s: (-s).rsqrt()), odd=True)

reciprocal = elementwise(
    "reciprocal",
    torch.reciprocal,
    interval=_reciprocal_interval,
    curve=RECIPROCAL,
    rounding=Rounding(ulps=1),
    sample=uniform(-2.0, 4.0),
    summary="1 / x; infinite bounds where x can be 0",
)
spell("reciprocal")


def _pow(x: Tensor, *, exponent: float) -> Tensor:
    return torch.pow(x, exponent)


def _is_even(exponent: float) -> bool:
    return exponent % 2 == 0


def _pow_interval(x: Interval, *, exponent: float) -> Interval:
    def fn(points: Tensor) -> Tensor:
        return torch.pow(points, exponent)

    whole = float(exponent).is_integer()
    if not whole:
        found = on_domain(fn, 0.0, falling=exponent < 0)(x)
    elif exponent < 0:
        pole = (x.lower <= 0.0) & (x.upper >= 0.0)
        # Without a pole inside it is monotone; a NaN operand is on no side of 0.
        inner = between(fn)(x)
        least = 0.0 if _is_even(exponent) else -torch.inf
        found = Interval(
            torch.where(pole, least, inner.lower), torch.where(pole, torch.inf, inner.upper)
        )
    else:
        found = between(fn, (Turn(0.0, 0.0, 0.0),) if _is_even(exponent) else ())(x)
    return finite_ends(found)


def _pow_curve(*, exponent: float) -> Curve:
    p, whole = exponent, float(exponent).is_integer()

    def slope(x: Tensor) -> Tensor:
        return p * torch.pow(x, p - 1.0)

    def inverse(s: Tensor) -> Tensor:
        return (s / p).clamp(min=0.0).pow(1.0 / (p - 1.0))

    if whole and p > 0:
        if not _is_even(p):
            return SinglePeak(slope, inverse, valley=True)
        return Convex(slope, lambda s: s.sign() * (s.abs() / p).pow(1.0 / (p - 1.0)))
    curve = Convex(slope, inverse, concave=0.0 < p < 1.0)
    return OneSided(curve, odd=not _is_even(p)) if whole else curve


elementwise(
    "pow",
    _pow,
    interval=_pow_interval,
    curve=_pow_curve,
    # An exponent that is rounded to float32 moves a power by up to 44 u: its logarithm is below 88.
    rounding=Rounding(ulps=24),
    partial=True,
    sample=uniform(0.1, 3.0, exponent=(3.0, 4.0, -2.0, -3.0, 1.5, 0.3, -0.7)),
    summary="x to the power of a number",
)


def power(b: Lowering, base: Any, exponent: Any) -> Value:
    """A power whose exponent, base, or both are tensors."""
    if isinstance(exponent, int | float):
        simple = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}
        if exponent == 1:
            return base
        if exponent == 0:
            return b.emit("add_scalar", b.emit("mul_scalar", base, other=0.0), other=1.0)
        if exponent in simple:
            return b.emit(simple[exponent], base)
        return b.emit("pow", base, exponent=float(exponent))
    if isinstance(base, int | float):
        if base <= 0:
            return b.reject("a power of a number that is not positive has no bound rule")
        return b.emit("exp", b.emit("mul_scalar", exponent, other=math.log(base)))
    # x^y = exp(y·log x), for positive x.
    return b.emit("exp", b.emit("mul", *b.broadcast(exponent, b.emit("log", base))))


lowers(torch.pow, "Tensor.pow", operator.pow, "Tensor.__pow__")(
    lambda b, input, exponent: power(b, input, exponent)
)
lowers(aten.pow.Tensor_Scalar, aten.pow.Scalar, aten.pow.Tensor_Tensor)(
    lambda b, input, exponent: power(b, input, exponent)
)


@lowers("Tensor.__rpow__")
def _(b: Lowering, input: Value, other: Any) -> Value:
    return power(b, other, input)


def _logit_distance(s: Tensor) -> Tensor:
    """p(1 − p) = 1/s at ½ ± this."""
    return (0.25 - 1.0 / s).clamp(min=0.0).sqrt()


def _logit_points(s: Tensor) -> tuple[Tensor, Tensor]:
    large = 0.5 + _logit_distance(s)
    return 1.0 / (s * large), large


elementwise(
    "logit",
    torch.logit,
    interval=on_domain(torch.logit, 0.0, 1.0),
    curve=SinglePeak(
        lambda p: 1.0 / (p * (1.0 - p)),
        _logit_distance,
        centre=0.5,
        valley=True,
        stationary=_logit_points,
    ),
    magnitude=torch.ones_like,
    rounding=Rounding(ulps=8, terms=lambda *_, **__: 8),
    partial=True,
    sample=uniform(0.01, 0.99),
    summary="log(x / (1 − x)); no bound where x leaves [0, 1]",
)


@lowers(torch.logit, "Tensor.logit", aten.logit.default, torch.special.logit)
def _(b: Lowering, input: Value, eps: float | None = None) -> Value:
    if eps is not None and eps >= 0:
        input = b.emit("clamp", input, low=float(eps), high=1.0 - float(eps))
    return b.emit("logit", input)


@lowers(torch.logaddexp, "Tensor.logaddexp", aten.logaddexp.default)
def _(b: Lowering, input: Value, other: Value) -> Value:
    """log(eᵃ + eᵇ) = a − log σ(a − b)."""
    first, second = b.broadcast(input, other)
    return b.emit("sub", first, b.emit("logsigmoid", b.emit("sub", first, second)))
