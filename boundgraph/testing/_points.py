"""Points of a region."""

from __future__ import annotations

import torch
from torch import Tensor

from boundgraph.domains.balls import BallInterval, inside_ball
from boundgraph.domains.interval import Interval


def sample_point(box: Interval, generator: torch.Generator, corner: bool = False) -> Tensor:
    """A point of the box, in its dtype; at a corner, or with some elements at an end.

    A point outside a ball is pulled to its surface.
    """
    share = torch.rand(box.lower.shape, generator=generator, dtype=torch.float64)
    share = share.round() if corner else share * 1.5 - 0.25
    inside = box.lower + share.clamp(0.0, 1.0).to(box.lower.dtype) * (box.upper - box.lower)
    inside = torch.where(share >= 1.0, box.upper, inside)
    inside = torch.minimum(torch.maximum(inside, box.lower), box.upper)
    return inside_ball(inside, box) if isinstance(box, BallInterval) else inside
