"""Parallel lines for increasing functions whose slope has a single peak."""

from __future__ import annotations

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.relaxations.relaxation import Parallel


def _through_ends(x: Interval, y: Interval, slope: Tensor) -> Parallel:
    """Lines of a slope no larger than the function's on [l, u], through both ends.

    If f' ≥ slope on [l, u] then f(x) − slope·x is non-decreasing there, so it lies between
    its values at l and u: the lower line passes through (l, f(l)), the upper through
    (u, f(u)).
    """
    return Parallel.between(slope, y.lower - slope * x.lower, y.upper - slope * x.upper)


def sigmoid_parallel(x: Interval) -> Parallel:
    """Slope min(σ'(l), σ'(u)): σ' has its only peak at 0, so it is smallest at an end."""
    y = Interval(torch.sigmoid(x.lower), torch.sigmoid(x.upper))
    slope = torch.minimum(y.lower * (1.0 - y.lower), y.upper * (1.0 - y.upper))
    return _through_ends(x, y, slope)


def tanh_parallel(x: Interval) -> Parallel:
    """Slope min(tanh'(l), tanh'(u)): tanh' has its only peak at 0."""
    y = Interval(torch.tanh(x.lower), torch.tanh(x.upper))
    slope = torch.minimum(1.0 - y.lower * y.lower, 1.0 - y.upper * y.upper)
    return _through_ends(x, y, slope)
