"""Corners of a region rounded outward, so that every real point of it lies between them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from boundgraph.domains.balls import BallInterval
from boundgraph.domains.interval import Interval
from boundgraph.domains.regions import Box, LinfBall, LpBall
from boundgraph.errors import RegionError


def enclosure(region: object) -> Interval:
    """Float ends around a region of real points.

    A `Box` is between its own tensors already. The corners of a ball, `center ± eps`, are
    formed in float64 and rounded away from the centre, then cut to `clip`, rounded outward.
    The radius of a p-ball is rounded up.

    Raises:
        RegionError: a kind of region whose corners nobody rounds.
    """
    if isinstance(region, Box):
        return region.interval()
    if not isinstance(region, LinfBall | LpBall):
        raise RegionError(
            f"a {type(region).__name__} has no rounding-sound corners; use Box, LinfBall, L1Ball "
            "or L2Ball, or rounding='nearest'"
        )
    center = region.center.double()
    # A Python number as the double that it is, not in torch's default dtype.
    eps = torch.as_tensor(region.eps, dtype=torch.float64, device=center.device)
    if isinstance(region, LpBall):
        eps = eps.reshape(-1).expand(len(center))
        reach = _rounded(eps, region.center.dtype, math.inf)
        eps = eps.reshape((-1,) + (1,) * (center.dim() - 1))
    lower, upper = center - eps, center + eps
    moved = eps != 0
    lower = torch.where(moved, torch.nextafter(lower, lower.new_tensor(-math.inf)), lower)
    upper = torch.where(moved, torch.nextafter(upper, upper.new_tensor(math.inf)), upper)
    if region.clip is not None:
        lower, upper = lower.clamp(*region.clip), upper.clamp(*region.clip)
    dtype = region.center.dtype
    ends = _rounded(lower, dtype, -math.inf), _rounded(upper, dtype, math.inf)
    if isinstance(region, LpBall):
        return BallInterval(*ends, region.center, reach, region.p)
    return Interval(*ends)


def corners(region: object, rounding: str) -> Interval:
    """Ends of a region, as bounds of this rounding need them."""
    if rounding == "sound":
        return enclosure(region)
    return region.interval()  # type: ignore[attr-defined,no-any-return]


def _rounded(value: Tensor, dtype: torch.dtype, towards: float) -> Tensor:
    """Float64 values in a dtype, rounded down or up."""
    near = value.to(dtype)
    inside = near.double() > value if towards < 0 else near.double() < value
    return torch.where(inside, torch.nextafter(near, near.new_tensor(towards)), near)
