"""Lines for convex functions and for those whose slope has one peak or valley."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import Lines
from boundgraph.relaxations.relaxation import (
    Parallel,
    Scalar,
    chord,
    no_wider_than_constant,
    no_worse_than_constant,
    ratio,
    roundoff,
)

Fn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Convex:
    """A convex (or concave) function with a slope that is known and can be inverted.

    A convex function lies below its chord. f(x) − s·x is convex too, so that its least value
    is where f' = s, or at the end next to it: with that point every slope s has an exact
    lower offset. The lower line touches at the middle, which no other line beats in area.

    Args:
        slope: f'.
        inverse: the point where f' has a given value; anything where there is none.
        concave: f is concave, and above its chord.
    """

    slope: Fn
    inverse: Fn
    concave: bool = False

    def parallel(self, f: Scalar, x: Interval) -> Parallel:
        """The chord and its parallel that touches on the other side."""
        slope = self._chord(f, x)
        lower, upper = _offsets(f, x, slope, (self.inverse(slope),))
        return no_wider_than_constant(f, x, Parallel.between(slope, lower, upper))

    def lines(self, f: Scalar, x: Interval) -> Lines:
        """The chord, and the tangent at the middle."""
        secant = self._chord(f, x)
        middle = x.lower * 0.5 + x.upper * 0.5
        tangent = self.slope(middle)
        low, high = (secant, tangent) if self.concave else (tangent, secant)
        lower, _ = _offsets(f, x, low, () if self.concave else (middle, self.inverse(low)))
        _, upper = _offsets(f, x, high, (middle, self.inverse(high)) if self.concave else ())
        return no_worse_than_constant(f, x, Lines(low, lower, high, upper))

    def _chord(self, f: Scalar, x: Interval) -> Tensor:
        """Its slope is between those at the ends, also where rounding hides the difference."""
        ends = self.slope(x.lower), self.slope(x.upper)
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        return torch.minimum(torch.maximum(chord(f, x, ends[0]), low), high)


@dataclass(frozen=True)
class SinglePeak:
    """A function whose slope is symmetric about a centre and falls on both sides of it.

    Left of the centre it is convex, right of it concave (an s, where it increases). The
    stationary points of f(x) − s·x are centre ± t with f'(centre + t) = s: the left one is a
    local minimum, the right one a local maximum. With the ends they give the exact offsets
    of any slope s, which makes every slope sound.

    The lower line over [l, u] with middle m supports the convex hull at m: the tangent at m
    where that stays below (u, f(u)), else the line from there that touches on the left, or
    the chord. The upper line is its mirror image. Source: Zhang et al. (arXiv 1811.00866),
    section 3.3; here any approximation of the tangent point serves.

    Args:
        slope: f'.
        inverse: the distance t from the centre at which f' has a given value.
        centre: where the slope has its peak.
        valley: the slope has a valley there instead: the function is concave, then convex.
        stationary: both points where f' has a given value, where centre ± t would cancel.
    """

    slope: Fn
    inverse: Fn
    centre: float = 0.0
    valley: bool = False
    stationary: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    def parallel(self, f: Scalar, x: Interval) -> Parallel:
        """Parallel to the chord."""
        slope = chord(f, x, self.slope(x.lower))
        lower, upper = _offsets(f, x, slope, self._stationary(slope))
        return no_wider_than_constant(f, x, Parallel.between(slope, lower, upper))

    def lines(self, f: Scalar, x: Interval) -> Lines:
        left, right = self._touching(f, x.lower, x.upper), self._touching(f, x.upper, x.lower)
        low, high = (right, left) if self.valley else (left, right)
        lower, _ = _offsets(f, x, low, self._stationary(low))
        _, upper = _offsets(f, x, high, self._stationary(high))
        return no_worse_than_constant(f, x, Lines(low, lower, high, upper))

    def _stationary(self, slope: Tensor) -> tuple[Tensor, Tensor]:
        if self.stationary is not None:
            return self.stationary(slope)
        distance = self.inverse(slope)
        return self.centre - distance, self.centre + distance

    def _touching(self, f: Scalar, near: Tensor, far: Tensor) -> Tensor:
        """Slope of the line that touches on the side of `near`, seen from the end `far`.

        The tangent point d solves f'(d)·(far − d) = f(far) − f(d). The chord's slope is
        stationary at d, so that repeating d ← f'⁻¹(slope of the chord from d) converges
        quadratically. It stays between `near` and the centre.
        """
        middle = near * 0.5 + far * 0.5
        sign = torch.where(far >= near, 1.0, -1.0)
        end = f.value(far)
        limit = sign * torch.minimum(sign * far, sign * self.centre)
        limit = torch.where(sign * limit < sign * near, near, limit)
        point = limit * 0.5 + torch.where(sign * middle < sign * limit, middle, limit) * 0.5
        for _ in range(4):
            steep = _slope_between(f, point, far, end)
            point = self.centre - sign * self.inverse(steep)
            point = torch.where(point == point, point, near)
            point = torch.where(sign * point > sign * limit, limit, point)
            point = torch.where(sign * point < sign * near, near, point)
        at_middle = (sign * middle <= sign * point) | (sign * far <= sign * self.centre)
        return torch.where(at_middle, self.slope(middle), _slope_between(f, point, far, end))


def _slope_between(f: Scalar, start: Tensor, far: Tensor, end: Tensor) -> Tensor:
    run = far * 0.5 - start * 0.5
    rise = end * 0.5 - f.value(start) * 0.5
    return ratio(torch.where(run < 0, -rise, rise), run.abs(), 0.0)


def _offsets(
    f: Scalar, x: Interval, slope: Tensor, stationary: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Extremes of f(x) − slope·x, which are at the ends or at stationary points.

    Where a stationary point is a rounding off, what it misses is of second order. All is
    moved outward by the rounding of the values and of the products.
    """
    points = [x.lower, x.upper]
    for point in stationary:
        known = torch.where(point == point, point, x.lower)
        points.append(torch.minimum(torch.maximum(known, x.lower), x.upper))
    lower = upper = error = None
    for point in points:
        value, line = f.value(point), slope * point
        gap = value - line
        size = f.error(point, value.abs()) + 4.0 * value.abs() + 8.0 * line.abs()
        if lower is None or upper is None or error is None:
            lower, upper, error = gap, gap, size
        else:
            lower, upper = torch.minimum(lower, gap), torch.maximum(upper, gap)
            error = torch.maximum(error, size)
    assert lower is not None and upper is not None and error is not None
    slack = roundoff(slope) * error
    return lower - slack, upper + slack


@dataclass(frozen=True)
class OneSided:
    """A function with a pole at 0, even or odd, whose curve for positive numbers is known.

    Negative intervals are reflected: f(x) = f(−x) or −f(−x). Nothing is said about an
    interval that contains 0, where there is no line.
    """

    curve: Convex
    odd: bool

    def parallel(self, f: Scalar, x: Interval) -> Parallel:
        negative, reflected = self._reflected(x)
        band = self.curve.parallel(f, reflected)
        turned = band.middle if not self.odd else -band.middle
        slope = band.slope if self.odd else -band.slope
        return no_wider_than_constant(
            f,
            x,
            Parallel(
                torch.where(negative, slope, band.slope),
                torch.where(negative, turned, band.middle),
                band.half_gap,
            ),
        )

    def lines(self, f: Scalar, x: Interval) -> Lines:
        negative, reflected = self._reflected(x)
        found = self.curve.lines(f, reflected)
        if self.odd:
            turned = Lines(
                found.upper_slope, -found.upper_offset, found.lower_slope, -found.lower_offset
            )
        else:
            turned = Lines(
                -found.lower_slope, found.lower_offset, -found.upper_slope, found.upper_offset
            )
        lines = Lines(
            torch.where(negative, turned.lower_slope, found.lower_slope),
            torch.where(negative, turned.lower_offset, found.lower_offset),
            torch.where(negative, turned.upper_slope, found.upper_slope),
            torch.where(negative, turned.upper_offset, found.upper_offset),
        )
        return no_worse_than_constant(f, x, lines)

    def _reflected(self, x: Interval) -> tuple[Tensor, Interval]:
        """Whether it is negative, and the interval on the positive side; NaN where 0 is inside."""
        negative, positive = x.upper < 0, x.lower > 0
        lower = torch.where(negative, -x.upper, torch.where(positive, x.lower, torch.nan))
        upper = torch.where(negative, -x.lower, torch.where(positive, x.upper, torch.nan))
        return negative, Interval(lower, upper)
