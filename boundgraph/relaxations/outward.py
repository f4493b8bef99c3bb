"""Line pairs that enclose a function exactly: the slope is a float, the offset rounded outward."""

from __future__ import annotations

import torch
from torch import Tensor

from boundgraph.domains.linear_form import Lines
from boundgraph.domains.rounding import Outward, above, below, grown
from boundgraph.relaxations.relu import relu_lines
from boundgraph.relaxations.s_shaped import sigmoid_parallel, tanh_parallel


def relu_outward(x: Outward, slope: Tensor | None = None) -> Lines:
    """Below: a line through 0 of slope in [0, 1], which is exact. Above: the chord's slope λ.

    relu is convex, so λx + μ is above it on [l, u] where it is at both ends: μ >= −λl and
    μ >= (1 − λ)u, for any float λ. Both are one or two roundings off.
    """
    near = relu_lines(x, slope)
    chord = near.upper_slope
    lower, upper = x.lower.clamp(max=0.0), x.upper.clamp(min=0.0)
    reach = torch.maximum(chord * -lower, (1.0 - chord) * upper)
    return Lines(near.lower_slope, torch.zeros_like(chord), chord, grown(reach, x.precision))


def leaky_relu_outward(x: Outward, *, negative_slope: float) -> Lines:
    """max(x, s·x) for 0 <= s <= 1, with s exact or rounded to the dtype.

    A line through 0 is below it for a slope in [s, 1]; the chord's slope λ is kept above s.
    Above, both ends ask for μ >= (λ − s)(−l) and μ >= (1 − λ)u.
    """
    p, s = x.precision, negative_slope
    lower, upper = x.lower.clamp(max=0.0), x.upper.clamp(min=0.0)
    width = upper * 0.5 - lower * 0.5
    share = upper * 0.5 / torch.where(width > 0, width, 1.0)
    chord = (share + s * (1.0 - share)).clamp(min=min(1.0, s * (1.0 + 8.0 * p.unit)), max=1.0)
    down = (chord - s) * -lower - lower * (8.0 * p.unit)
    reach = torch.maximum(down, (1.0 - chord) * upper)
    return Lines(chord, torch.zeros_like(chord), chord, grown(reach.clamp(min=0.0), p))


def _s_shaped(x: Outward, y: Outward, slope: Tensor) -> Lines:
    """Lines through both ends of a function whose derivative is at least `slope` on [l, u].

    The computed least slope is off by less than 64 u, which is taken off; then f(x) − slope·x
    does not decrease, and lies between its values at l and u.

    Args:
        y: encloses f(l) below and f(u) above.
    """
    p = x.precision
    kept = (slope - 64.0 * p.unit).clamp(min=0.0)
    low, high = kept * x.lower, kept * x.upper
    return Lines(
        kept,
        below(y.lower - low, low.abs() * (4.0 * p.unit), p),
        kept,
        above(y.upper - high, high.abs() * (4.0 * p.unit), p),
    )


def sigmoid_outward(x: Outward, y: Outward) -> Lines:
    return _s_shaped(x, y, sigmoid_parallel(x).slope)


def tanh_outward(x: Outward, y: Outward) -> Lines:
    return _s_shaped(x, y, tanh_parallel(x).slope)
