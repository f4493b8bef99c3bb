"""Lines for functions that are linear between finitely many points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import Lines
from boundgraph.relaxations.relaxation import (
    Parallel,
    Scalar,
    no_wider_than_constant,
    no_worse_than_constant,
    ratio,
    roundoff,
)
from boundgraph.relaxations.turns import Turn


@dataclass(frozen=True)
class PiecewiseLinear:
    """The convex hull of the function's corners, which are at the ends and at its turns.

    f(x) − s·x is linear between corners for any slope s, so its extremes over the interval
    are at corners: the offsets are exact, and any slope is sound. The slopes taken are those
    of the hull at the middle of the interval, which no other lines beat in area.

    Args:
        turns: where the slope changes or the function jumps, in ascending order.
    """

    turns: tuple[Turn, ...]

    def parallel(self, f: Scalar, x: Interval) -> Parallel:
        """Parallel to the chord."""
        corners = self._corners(f, x)
        (left, first), (right, last) = corners[0], corners[-1]
        slope = ratio(last * 0.5 - first * 0.5, right * 0.5 - left * 0.5, 0.0)
        lower, upper = _offsets(f, corners, slope), _offsets(f, corners, slope, above=True)
        return no_wider_than_constant(f, x, Parallel.between(slope, lower, upper))

    def lines(self, f: Scalar, x: Interval) -> Lines:
        """The edges of the lower and of the upper hull over the middle."""
        corners = self._corners(f, x)
        middle = x.lower * 0.5 + x.upper * 0.5
        low = _hull_slope(corners, middle, 1.0)
        high = _hull_slope(corners, middle, -1.0)
        lines = Lines(low, _offsets(f, corners, low), high, _offsets(f, corners, high, above=True))
        return no_worse_than_constant(f, x, lines)

    def _corners(self, f: Scalar, x: Interval) -> list[tuple[Tensor, Tensor]]:
        """Points in ascending order with the limits of f there.

        A turn outside the interval repeats the end next to it.
        """
        at_lower, at_upper = f.value(x.lower), f.value(x.upper)
        corners = [(x.lower, at_lower)]
        for turn in self.turns:
            inside = (x.lower <= turn.point) & (x.upper >= turn.point)
            before = x.upper < turn.point
            outside = torch.where(before, x.upper, x.lower)
            point = torch.where(inside, turn.point, outside)
            beside = torch.where(before, at_upper, at_lower)
            limits = dict.fromkeys((turn.low, turn.high))
            corners += [(point, torch.where(inside, limit, beside)) for limit in limits]
        return [*corners, (x.upper, at_upper)]


def _hull_slope(corners: list[tuple[Tensor, Tensor]], middle: Tensor, sign: float) -> Tensor:
    """The slope of the chord of two corners that is lowest (sign 1) at the middle."""
    best = slope = None
    for i, (left, first) in enumerate(corners):
        for right, last in corners[i + 1 :]:
            run = right * 0.5 - left * 0.5
            steep = ratio(last * 0.5 - first * 0.5, run, 0.0)
            height = sign * (first + steep * (middle - left))
            spans = (left <= middle) & (right >= middle) & (run > 0)
            height = torch.where(spans, height, torch.inf)
            if best is None or slope is None:
                best, slope = height, steep
            else:
                slope = torch.where(height < best, steep, slope)
                best = torch.minimum(height, best)
    assert slope is not None
    return slope


def _offsets(
    f: Scalar, corners: list[tuple[Tensor, Tensor]], slope: Tensor, *, above: bool = False
) -> Tensor:
    """The least (greatest) value of f(x) − slope·x, moved outward by its own rounding."""
    found = error = None
    for point, value in corners:
        line = slope * point
        gap = value - line
        size = f.error(point, value.abs()) + 4.0 * value.abs() + 8.0 * line.abs()
        if found is None or error is None:
            found, error = gap, size
        else:
            found = torch.maximum(found, gap) if above else torch.minimum(found, gap)
            error = torch.maximum(error, size)
    assert found is not None and error is not None
    slack = roundoff(slope) * error
    return found + slack if above else found - slack
