"""Linear relaxations of a function over an interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import Lines


@dataclass(frozen=True)
class Parallel:
    """Two parallel lines: `slope·x + middle ± half_gap` encloses the function.

    Args:
        slope, middle, half_gap: tensors of the operand's shape; `half_gap >= 0`.
    """

    slope: Tensor
    middle: Tensor
    half_gap: Tensor

    @classmethod
    def between(cls, slope: Tensor, lower_offset: Tensor, upper_offset: Tensor) -> Parallel:
        """From the offsets of the lower and the upper line."""
        return cls(
            slope,
            lower_offset * 0.5 + upper_offset * 0.5,
            upper_offset * 0.5 - lower_offset * 0.5,
        )


@dataclass(frozen=True)
class Scalar:
    """A function of one real number, as a relaxation sees it.

    Args:
        value: computes it, element by element.
        enclosure: its interval rule.
        error: `(points, values) -> Tensor`: how far computed values may be from the real
            ones, in units of the roundoff of their dtype, as an absolute error.
    """

    value: Callable[[Tensor], Tensor]
    enclosure: Callable[[Interval], Interval]
    error: Callable[[Tensor, Tensor], Tensor]


class Curve(Protocol):
    """What is known about the shape of a function, and the lines that follow from it."""

    def parallel(self, f: Scalar, x: Interval) -> Parallel:
        """Two parallel lines around f over x."""
        ...

    def lines(self, f: Scalar, x: Interval) -> Lines:
        """A line below and a line above f over x."""
        ...


def roundoff(like: Tensor) -> Tensor:
    """Half the distance from 1 to the next number, as a scalar of the dtype of `like`.

    The dtype is not known where a rule is traced, so that it is measured.
    """
    one = torch.ones((), dtype=like.dtype, device=like.device)
    return (torch.nextafter(one, one + one) - one) * 0.5


def ratio(numerator: Tensor, denominator: Tensor, otherwise: Tensor | float) -> Tensor:
    """A quotient, and `otherwise` where the denominator is not positive; gradients stay finite."""
    positive = denominator > 0
    return torch.where(positive, numerator / torch.where(positive, denominator, 1.0), otherwise)


def chord(f: Scalar, x: Interval, at_a_point: Tensor | float = 0.0) -> Tensor:
    """The slope between both ends; `at_a_point` where the width is 0."""
    # Halves, so that no width overflows to infinity, which would give a slope of 0.
    rise = f.value(x.upper) * 0.5 - f.value(x.lower) * 0.5
    return ratio(rise, x.upper * 0.5 - x.lower * 0.5, at_a_point)


def no_worse_than_constant(f: Scalar, x: Interval, lines: Lines) -> Lines:
    """Each line, or the end of the range as a horizontal one where that is better or finite.

    Of two lines below a function the better one is higher at the middle of the interval,
    because that is its mean over the interval.
    """
    range_ = f.enclosure(x)
    middle = x.lower * 0.5 + x.upper * 0.5
    keep_lower = lines.lower_slope * middle + lines.lower_offset > range_.lower
    keep_upper = lines.upper_slope * middle + lines.upper_offset < range_.upper
    # A comparison with NaN is false, and −inf or inf never wins, so what is kept is finite.
    keep_lower = keep_lower & (lines.lower_slope.abs() < torch.inf)
    keep_upper = keep_upper & (lines.upper_slope.abs() < torch.inf)
    keep_lower = keep_lower & (lines.lower_offset.abs() < torch.inf)
    keep_upper = keep_upper & (lines.upper_offset.abs() < torch.inf)
    return Lines(
        torch.where(keep_lower, lines.lower_slope, 0.0),
        torch.where(keep_lower, lines.lower_offset, range_.lower),
        torch.where(keep_upper, lines.upper_slope, 0.0),
        torch.where(keep_upper, lines.upper_offset, range_.upper),
    )


def no_wider_than_constant(f: Scalar, x: Interval, band: Parallel) -> Parallel:
    """The band, or the range of the function where that is narrower or the band not finite."""
    range_ = f.enclosure(x)
    bounded = range_.center.abs() < torch.inf
    middle = torch.where(bounded, range_.center, 0.0)
    half_gap = torch.where(bounded, range_.radius, torch.inf)
    keep = (band.half_gap < half_gap) & (band.slope.abs() < torch.inf)
    keep = keep & (band.middle.abs() < torch.inf)
    return Parallel(
        torch.where(keep, band.slope, 0.0),
        torch.where(keep, band.middle, middle),
        torch.where(keep, band.half_gap, half_gap),
    )
