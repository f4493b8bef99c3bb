"""Parallel lines for rectifiers."""

from __future__ import annotations

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import Lines
from boundgraph.relaxations.relaxation import Parallel


def relu_parallel(x: Interval) -> Parallel:
    """The chord of relu and its parallel through the origin.

    With l' = min(l, 0) and u' = max(u, 0) the chord has slope λ = u'/(u' − l') in [0, 1]
    and offset −λl' ≥ 0. relu is convex, so it lies below its chord on [l', u'] ⊇ [l, u];
    and relu(x) ≥ λx for every x because 0 ≤ λ ≤ 1. Where u' = l' = 0 any λ in [0, 1]
    serves; 0 is taken. For l ≥ 0 this gives λ = 1 and no gap, for u ≤ 0 λ = 0 and no gap.

    Source: Wong & Kolter (arXiv 1711.00851) eq. 6; Weng et al., Fast-Lin (1804.09699).
    """
    return leaky_relu_parallel(x, 0.0)


def leaky_relu_parallel(x: Interval, negative_slope: float) -> Parallel:
    """The chord of leaky relu (0 ≤ negative_slope ≤ 1) and its parallel through the origin.

    f(x) = max(x, s·x) is convex with f(0) = 0. Its chord on [l', u'] has slope
    λ = (u' − s·l')/(u' − l') in [s, 1], so λx ≤ max(x, s·x) everywhere, and the chord,
    λx + (s − λ)·l', lies above f between l' and u'.

    Raises:
        ValueError: `negative_slope` outside [0, 1], where the argument fails.
    """
    if not 0.0 <= negative_slope <= 1.0:
        raise ValueError(f"needs 0 <= negative_slope <= 1, got {negative_slope}")
    lower = x.lower.clamp(max=0.0)
    upper = x.upper.clamp(min=0.0)
    # Halving first: a width that overflows to infinity would give the slope 0 and no gap,
    # a finite and wrong enclosure.
    width = upper * 0.5 - lower * 0.5
    # Only a width of exactly 0 needs a stand-in: any smaller substitute for a tiny width
    # would give a slope below the chord's and an upper line that cuts the function.
    width = torch.where(width > 0, width, 1.0)
    share = upper * 0.5 / width
    slope = share + negative_slope * (1.0 - share) if negative_slope else share
    # (s − λ)·l' = (1 − s)·u'·(−l')/(u' − l'), as the smaller of u' and −l' times the larger
    # share of the width: nothing cancels, and no factor underflows beside a huge one.
    gap = torch.minimum(upper, -lower) * torch.maximum(share, 1.0 - share)
    half_gap = gap * (0.5 - 0.5 * negative_slope)
    return Parallel(slope, half_gap, half_gap)


def relu_lines(x: Interval, slope: Tensor | None = None) -> Lines:
    """The chord above; below, a line through the origin with a slope in [0, 1].

    slope·x is below relu everywhere for any slope in [0, 1]. Without one, 1 is taken where
    u > −l and 0 elsewhere, which minimises the area between the lines (CROWN, Zhang et al.,
    arXiv 1811.00866); given (alpha-CROWN, Xu et al., arXiv 2011.13824), it is clamped.
    """
    chord = relu_parallel(x)
    if slope is None:
        slope = (x.upper > -x.lower).to(chord.slope.dtype)
    # Not torch.clamp: its gradient is 0 at the ends, where every slope starts.
    slope = torch.where(slope > 1.0, 1.0, torch.where(slope >= 0.0, slope, 0.0))
    # A stable unit is exact: its chord has slope 1 or 0 and no gap.
    free = torch.where(x.upper <= 0, 0.0, slope)
    zero = torch.zeros_like(chord.middle)
    lower_slope = torch.where(x.lower >= 0, 1.0, free)
    return Lines(lower_slope, zero, chord.slope, chord.middle * 2.0, from_origin=True)
