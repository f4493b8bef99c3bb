"""Interval enclosures of a function from where it turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval


class Turn(NamedTuple):
    """A point where a function turns, jumps or has a pole.

    Args:
        point: where.
        low, high: least and largest limit of the function there.
    """

    point: float
    low: float
    high: float


def between(
    fn: Callable[[Tensor], Tensor], turns: Iterable[Turn] = ()
) -> Callable[[Interval], Interval]:
    """The range of a function that is monotone between its turns.

    Its extremes over [l, u] are among the values at l, at u and at the turns inside.
    A turn that float arithmetic cannot tell from an end counts as inside.
    """
    listed = tuple(turns)

    def enclose(x: Interval) -> Interval:
        at_lower, at_upper = fn(x.lower), fn(x.upper)
        low, high = torch.minimum(at_lower, at_upper), torch.maximum(at_lower, at_upper)
        for turn in listed:
            # A rounded point may lie on the other side of an end that it equals.
            inside = (x.lower <= turn.point) & (x.upper >= turn.point)
            low = torch.where(inside & (low > turn.low), turn.low, low)
            high = torch.where(inside & (high < turn.high), turn.high, high)
        return Interval(low, high)

    return enclose


def turn_of(fn: Callable[[Tensor], Tensor], low: float, high: float, sign: float) -> Turn:
    """The only minimum (sign −1) or maximum (sign 1) of a smooth function between two points.

    Found by golden-section search in float64: the point is good to half its digits and so,
    because the function is flat there, the value to all of them.
    """

    def value(point: float) -> float:
        return float(fn(torch.tensor(point, dtype=torch.float64, device="cpu")))

    share = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(120):
        first, second = high - share * (high - low), low + share * (high - low)
        if sign * value(first) < sign * value(second):
            low = first
        else:
            high = second
    point = (low + high) / 2.0
    return Turn(point, value(point), value(point))
