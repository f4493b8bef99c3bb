"""Lines for any function with an interval enclosure: the universal fallback."""

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

PIECES, PIECES_WITHOUT_SLOPE = 8, 16


@dataclass(frozen=True)
class Fallback:
    """Lines from bounds of f(x) − s·x over the pieces of a subdivision, for any slope s.

    Every slope is sound, because the offset is a rigorous bound of f(x) − s·x: the slope
    decides only how tight the lines are.

    Without `slope`, piece [a, b] gives f([a, b]) − s·[a, b] from the interval rule. With
    it, f' − s lies in [p, q] on the piece, and g(x) = f(x) − s·x is at least
    g(a) + min(p, 0)·(x − a) and at least g(b) − max(q, 0)·(b − x). The mean of the two
    weighted by w and 1 − w is a constant for one w in [0, 1], and that constant is a lower
    bound of g (Piyavskii 1972); its error shrinks with the square of the piece.

    Args:
        slope: interval rule of the derivative; absent where there is none, and for a
            function that jumps.
    """

    slope: Callable[[Interval], Interval] | None = None

    def parallel(self, f: Scalar, x: Interval) -> Parallel:
        """Parallel to the chord."""
        pieces = _Pieces.of(f, x, self.slope)
        slope = pieces.feasible(chord(f, x))
        lower, upper = pieces.offsets(f, slope)
        return no_wider_than_constant(f, x, Parallel.between(slope, lower, upper))

    def lines(self, f: Scalar, x: Interval) -> Lines:
        """Slopes of the convex hull of the subdivision's points at the middle of the interval."""
        pieces = _Pieces.of(f, x, self.slope)
        low, high = (pieces.feasible(slope) for slope in pieces.hull_slopes())
        lines = Lines(low, pieces.offsets(f, low)[0], high, pieces.offsets(f, high)[1])
        return no_worse_than_constant(f, x, lines)


@dataclass(frozen=True)
class _Pieces:
    """A subdivision of each interval, along a new last dimension.

    Args:
        points, values: where it is cut, and f there.
        box: the pieces.
        slopes: enclosure of f' on each piece.
    """

    points: Tensor
    values: Tensor
    box: Interval
    slopes: Interval | None

    @classmethod
    def of(cls, f: Scalar, x: Interval, slope: Callable[[Interval], Interval] | None) -> _Pieces:
        count = PIECES if slope else PIECES_WITHOUT_SLOPE
        lower, upper = x.lower.unsqueeze(-1), x.upper.unsqueeze(-1)
        share = torch.linspace(0.0, 1.0, count + 1, dtype=lower.dtype, device=lower.device)
        points = lower * (1.0 - share) + upper * share
        points = torch.minimum(torch.maximum(points, lower), upper)
        left, right = points.narrow(-1, 0, count), points.narrow(-1, 1, count)
        # Neighbours may be a rounding out of order where the interval is a few ulps wide.
        box = Interval(torch.minimum(left, right), torch.maximum(left, right))
        return cls(points, f.value(points), box, slope(box) if slope else None)

    def feasible(self, slope: Tensor) -> Tensor:
        """A slope within those of the function: the mean value theorem, where rounding hides it."""
        if self.slopes is None:
            return slope
        low, high = self.slopes.lower.amin(-1), self.slopes.upper.amax(-1)
        return torch.minimum(torch.maximum(slope, low), high)

    def hull_slopes(self) -> tuple[Tensor, Tensor]:
        """Slopes of the lower and of the upper hull of the points, at their middle.

        Of all chords between a point left of the middle and one right of it, the lowest at
        the middle is an edge of the lower hull.
        """
        half = (PIECES_WITHOUT_SLOPE if self.slopes is None else PIECES) // 2
        at = self.points
        after = torch.arange(1, half + 1, dtype=at.dtype, device=at.device)
        before = (half + 1 - after).unsqueeze(-1)
        start = self.values.narrow(-1, 0, half).unsqueeze(-1)
        end = self.values.narrow(-1, half + 1, half).unsqueeze(-2)
        heights = ((start * after + end * before) / (before + after)).flatten(-2)
        rise = ((end - start) / (before + after)).flatten(-2)
        run = self.points.narrow(-1, 2 * half, 1) - self.points.narrow(-1, 0, 1)
        picks = heights.argmin(-1, keepdim=True), heights.argmax(-1, keepdim=True)
        low, high = (ratio(rise.gather(-1, pick) * (2.0 * half), run, 0.0) for pick in picks)
        return low.squeeze(-1), high.squeeze(-1)

    def offsets(self, f: Scalar, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of f(x) − slope·x over all pieces, moved outward by their own rounding."""
        steep = slope.unsqueeze(-1)
        count = PIECES_WITHOUT_SLOPE if self.slopes is None else PIECES
        line = steep * self.points
        if self.slopes is None:
            range_ = f.enclosure(self.box)
            ends = line.narrow(-1, 0, count), line.narrow(-1, 1, count)
            lower = range_.lower - torch.maximum(*ends)
            upper = range_.upper - torch.minimum(*ends)
            size = torch.maximum(range_.lower.abs(), range_.upper.abs())
            points = torch.maximum(self.box.lower.abs(), self.box.upper.abs())
            error = f.error(points, size) + 4.0 * size
        else:
            gap = self.values - line
            left, right = gap.narrow(-1, 0, count), gap.narrow(-1, 1, count)
            width = self.box.upper - self.box.lower
            fall = (self.slopes.lower - steep).clamp(max=0.0)
            climb = (self.slopes.upper - steep).clamp(min=0.0)
            share = ratio(-fall, climb - fall, 0.0)
            lower = left + (right - left) * share - share * climb * width
            # From above: g(b) − min(p, 0)·(b − x) and g(a) + max(q, 0)·(x − a).
            lift = (1.0 - share) * fall * width
            upper = right + (left - right) * share - lift
            size = self.values.abs()
            reach = torch.maximum(self.slopes.lower.abs(), self.slopes.upper.abs()) + steep.abs()
            error = (f.error(self.points, size) + 8.0 * size).amax(-1)
            error = (error + (16.0 * reach * width).amax(-1)).unsqueeze(-1)
        error = error.amax(-1) + 8.0 * line.abs().amax(-1)
        slack = roundoff(slope) * error
        return lower.amin(-1) - slack, upper.amax(-1) + slack
