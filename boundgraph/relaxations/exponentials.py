"""Linear bounds of log Σ exp, softmax and log softmax over a box.

All are written around a point c of the box, `value + Σ slope·(x − c)`, so that nothing cancels
where entries are large.

Below, log Σ exp is convex and lies above its tangent at c. Above, each e^x lies below its chord,
and with T the sum of the chords log T ≤ log T(c) + (T − T(c)) / T(c).

softmax_i = exp(x_i − log Σ exp x), so lines of log Σ exp give lines of it: its exponential lies
above its tangent and below its chord over the exact range. Slopes in the others' entries are then
the same for every i up to a factor, and a form walks through n coefficients, not n².

Sources: Wei et al., Convex bounds on the softmax function (arXiv 2303.01713), for the use of both
ends of log Σ exp; Xu et al. (arXiv 2002.12920) for chords of exponentials. Moving the coefficients
by a constant, because Σ softmax = 1, is from the dual of that constraint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.relaxations.relaxation import ratio


@dataclass(frozen=True)
class Plane:
    """`value + Σ slope·(x − c)`, with the sum over some dimensions.

    Args:
        value: with those dimensions kept at size 1.
        slope: of the operand's shape.
    """

    value: Tensor
    slope: Tensor


@dataclass(frozen=True)
class LogSumExp:
    """Planes below and above log Σ exp.

    Args:
        point: c, finite also where an entry is −∞, whose slopes are 0.
        below, above: the planes.
    """

    point: Tensor
    below: Plane
    above: Plane


def log_sum_exp(x: Interval, dims: tuple[int, ...]) -> LogSumExp:
    """Planes around log Σ exp over dimensions."""
    finite = x.lower > -torch.inf
    middle = torch.where(finite, x.lower * 0.5 + x.upper * 0.5, x.upper)
    point = torch.where(middle > -torch.inf, middle, 0.0)
    tangent = torch.logsumexp(middle, dims, keepdim=True)
    weights = (middle - tangent).exp()
    top = x.upper.amax(dims, keepdim=True)
    high = (x.upper - top).exp()
    width = torch.where(finite, x.upper - x.lower, torch.inf)
    # (e^u − e^l) / (u − l), which is e^u for a width of 0 and 0 for an infinite one.
    rise = high * ratio(-torch.expm1(-width), width, 1.0)
    # The chord at the middle; where there is none, its one value e^u.
    at_point = torch.where(finite, (x.lower - top).exp() * 0.5 + high * 0.5, high)
    total = at_point.sum(dims, keepdim=True)
    return LogSumExp(
        point,
        Plane(tangent, weights),
        Plane(top + total.log(), rise / total),
    )


@dataclass(frozen=True)
class Softmax:
    """Around each entry: `value + factor·((x_i − c_i) − Σ slope·(x − c))`.

    Args:
        sums: the planes of log Σ exp, whose upper slopes the lower bound takes, and vice versa.
        low, low_factor: value at c and factor of the lower bound.
        high, high_factor: of the upper bound.
    """

    sums: LogSumExp
    low: Tensor
    low_factor: Tensor
    high: Tensor
    high_factor: Tensor


def softmax_planes(x: Interval, y: Interval, log_y: Interval, dim: int) -> Softmax:
    """Planes around each entry of a softmax.

    Args:
        x: the box of the operand.
        y, log_y: exact ranges of softmax and log softmax over it.
        dim: along which the entries sum to 1.
    """
    sums = log_sum_exp(x, (dim,))
    seen = y.upper > 0
    # The tangent of exp at what the lower bound of x_i − log Σ exp x is at c.
    low = torch.where(seen, (sums.point - sums.above.value).exp(), 0.0)
    linear = low > y.lower
    # The chord of exp over the range of the logarithm.
    width = torch.where(seen, log_y.upper - log_y.lower, 0.0)
    chord = y.upper * ratio(-torch.expm1(-width), width, 1.0)
    center = torch.where(seen, sums.point - sums.below.value, 0.0)
    run = torch.where(seen & (log_y.lower > -torch.inf), center - log_y.lower, 0.0)
    sloped = seen & (log_y.lower > -torch.inf)
    return Softmax(
        sums,
        torch.where(linear, low, y.lower),
        torch.where(linear, low, 0.0),
        torch.where(sloped, y.lower + chord * run, y.upper),
        torch.where(sloped, chord, 0.0),
    )
