"""Intervals that account for the rounding of their own computation.

The model of arithmetic: with u the unit roundoff and η at least the smallest normal number, a
computed sum, difference, product or quotient is `z·(1 + δ) + ε` with |δ| <= u, |ε| <= η.
Gradual underflow errs by less than η/2; η also covers results flushed to zero.
Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), ch. 2-3; Rump,
Verification methods (2010), sec. 10, for centre/radius in rounding to nearest.

Every constant used here is a small multiple of u or of η and so a float itself, and every
expression is ordinary tensor code that traces, compiles and has a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.errors import ConfigError


@dataclass(frozen=True)
class Precision:
    """The constants of a floating-point format.

    Args:
        unit: u, half the distance from 1 to the next number.
        tiny: η, not below the smallest normal number. Far above it, because what is added for
            underflow meets weights, and products that are subnormal take processors a hundred
            times as long.
    """

    unit: float
    tiny: float

    def steps(self, terms: float) -> int:
        """γ(terms) in units of u, rounded up: |fl(Σ) − Σ| <= steps·u·Σ|·|, in any order.

        Raises:
            ConfigError: so many terms that the bound means nothing.
        """
        share = terms * self.unit
        if share > 1 / 16:
            raise ConfigError(
                f"a sum of {terms:.0f} terms has no useful rounding bound with unit roundoff "
                f"{self.unit:.3g}; use model.double()"
            )
        # One more, for the roundings of this line.
        return math.ceil(terms / (1.0 - share)) + 1

    def gamma(self, terms: float) -> float:
        """γ(terms), an exact multiple of u."""
        return self.steps(terms) * self.unit


PRECISIONS = {
    "f32": Precision(2.0**-24, 2.0**-96),
    "f64": Precision(2.0**-53, 2.0**-900),
}


def below(value: Tensor, error: Tensor | float, precision: Precision) -> Tensor:
    """A number below `value − error`, where `value` itself is one rounding off.

    −inf where `value` is NaN or +inf, or `error` NaN: something overflowed and says nothing.
    """
    widen = value.abs() * (4.0 * precision.unit) + (error + 8.0 * precision.tiny)
    moved = value - widen * (1.0 + 8.0 * precision.unit)
    return torch.where(moved < math.inf, moved, -math.inf)


def above(value: Tensor, error: Tensor | float, precision: Precision) -> Tensor:
    """A number above `value + error`, where `value` itself is one rounding off."""
    widen = value.abs() * (4.0 * precision.unit) + (error + 8.0 * precision.tiny)
    moved = value + widen * (1.0 + 8.0 * precision.unit)
    return torch.where(moved > -math.inf, moved, math.inf)


class Outward(Interval):
    """An interval whose conversions between ends and centre/radius are rounded outward.

    What is stored is exact: the value lies between the stored ends, or within the stored
    radius of the stored centre, as real numbers. A NaN or infinite part means no bound.
    """

    __slots__ = ("is_ball", "precision")

    def __init__(self, lower: Tensor, upper: Tensor, precision: Precision) -> None:
        super().__init__(lower, upper)
        self.precision, self.is_ball = precision, False

    @classmethod
    def ball(cls, center: Tensor, radius: Tensor, precision: Precision) -> Outward:
        """`center ± radius`, exactly."""
        new = cls(center, center, precision)
        new._lower, new._upper, new._center, new._radius = None, None, center, radius
        new.is_ball = True
        return new

    @classmethod
    def of(cls, value: Interval, precision: Precision) -> Outward:
        """The same set, from the parts that are stored and not from derived ones."""
        if isinstance(value, Outward):
            return value
        if value._lower is not None:
            return cls(value._lower, value._upper, precision)
        return cls.ball(value._center, value._radius, precision)

    @property
    def lower(self) -> Tensor:
        if self._lower is None:
            self._lower = below(self._center - self._radius, 0.0, self.precision)
        return self._lower

    @property
    def upper(self) -> Tensor:
        if self._upper is None:
            self._upper = above(self._center + self._radius, 0.0, self.precision)
        return self._upper

    @property
    def center(self) -> Tensor:
        # Any finite centre will do, because the radius is measured from it.
        if self._center is None:
            middle = self._lower * 0.5 + self._upper * 0.5
            self._center = torch.where(middle.abs() < math.inf, middle, 0.0)
        return self._center

    @property
    def radius(self) -> Tensor:
        if self._radius is None:
            center = self.center
            reach = torch.maximum(self._upper - center, center - self._lower)
            self._radius = grown(reach, self.precision)
        return self._radius

    def map(self, fn: Callable[[Tensor], Tensor]) -> Outward:
        if self.is_ball:
            return Outward.ball(fn(self._center), fn(self._radius), self.precision)
        return Outward(fn(self.lower), fn(self.upper), self.precision)

    def magnitude(self) -> Tensor:
        """At least the largest absolute value."""
        if self.is_ball:
            return grown(self._center.abs() + self._radius, self.precision)
        return torch.maximum(self._lower.abs(), self._upper.abs())


def grown(value: Tensor, precision: Precision) -> Tensor:
    """Above a non-negative number that is a few roundings off."""
    return value * (1.0 + 8.0 * precision.unit) + 8.0 * precision.tiny


def widened(value: Interval, error: Tensor | float, precision: Precision) -> Outward:
    """The interval and all numbers within `error` of it."""
    exact = Outward.of(value, precision)
    if exact.is_ball:
        return Outward.ball(exact.center, grown(exact.radius + error, precision), precision)
    return Outward(
        below(exact.lower, error, precision), above(exact.upper, error, precision), precision
    )
