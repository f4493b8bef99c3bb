"""Intervals: element-wise lower and upper bounds, in whichever form is at hand.

An affine op wants centre and radius (two products: `L·c` and `|L|·r`); a monotone op
wants the ends. An `Interval` holds one form and derives the other on demand, so that a
traced program contains only the conversions it uses. Nothing here depends on values:
the same code runs on tensors (reference) and on `torch.fx` proxies (emission).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Interval:
    """All tensors `x` with `lower <= x <= upper`, element by element.

    Args:
        lower, upper: tensors of one shape.
    """

    __slots__ = ("_center", "_lower", "_radius", "_upper")

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        # Any: a part that is not there yet is None, and each property fills its own.
        self._lower: Any = lower
        self._upper: Any = upper
        self._center: Any = None
        self._radius: Any = None

    @classmethod
    def from_center_radius(cls, center: Tensor, radius: Tensor) -> Interval:
        """`center ± radius`; `radius` must be non-negative."""
        new = cls.__new__(cls)
        new._lower, new._upper, new._center, new._radius = None, None, center, radius
        return new

    @classmethod
    def point(cls, value: Tensor) -> Interval:
        return cls(value, value)

    @property
    def lower(self) -> Tensor:
        if self._lower is None:
            self._lower = self._center - self._radius
        return self._lower

    @property
    def upper(self) -> Tensor:
        if self._upper is None:
            self._upper = self._center + self._radius
        return self._upper

    @property
    def center(self) -> Tensor:
        # Halving before adding cannot overflow, and is exact where both ends are equal.
        if self._center is None:
            self._center = self._lower * 0.5 + self._upper * 0.5
        return self._center

    @property
    def radius(self) -> Tensor:
        if self._radius is None:
            self._radius = self._upper * 0.5 - self._lower * 0.5
        return self._radius

    @property
    def any_part(self) -> Tensor:
        """A part that exists already: for shape, dtype and device."""
        return self._center if self._lower is None else self._lower

    def map(self, fn: Callable[[Tensor], Tensor]) -> Interval:
        """Apply a function that only moves elements (a reshape, say) to both parts."""
        if self._center is not None:
            return Interval.from_center_radius(fn(self._center), fn(self._radius))
        return Interval(fn(self.lower), fn(self.upper))

    def __repr__(self) -> str:
        return f"Interval(lower={self.lower!r}, upper={self.upper!r})"


def as_interval(value: Interval | Tensor) -> Interval:
    return value if isinstance(value, Interval) else Interval.point(value)


def meet(a: Interval, b: Interval) -> Interval:
    """The intersection of two intervals that both contain the true value.

    Where rounding leaves them a hair apart (possible when the width is near zero) the
    gap between them is returned, which both enclosures touch.
    """
    lower = torch.maximum(a.lower, b.lower)
    upper = torch.minimum(a.upper, b.upper)
    return Interval(torch.minimum(lower, upper), torch.maximum(lower, upper))


def hull(a: Interval, b: Interval) -> Interval:
    return Interval(torch.minimum(a.lower, b.lower), torch.maximum(a.upper, b.upper))


pytree.register_pytree_node(
    Interval,
    lambda interval: ([interval.lower, interval.upper], None),
    lambda children, _: Interval(*children),
    serialized_type_name="boundgraph.Interval",
)
