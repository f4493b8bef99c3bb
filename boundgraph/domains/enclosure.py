"""Corners of a region rounded outward, so that every real point of it lies between them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.regions import Box, LinfBall
from boundgraph.errors import RegionError


def enclosure(region: object) -> Interval:
    """Float ends around a region of real points.

    A `Box` is between its own tensors already. The corners of a ball, `center ± eps`, are
    formed in float64 and rounded away from the centre, then cut to `clip`, rounded outward.

    Raises:
        RegionError: a kind of region whose corners nobody rounds.
    """
    if isinstance(region, Box):
        return region.interval()
    if not isinstance(region, LinfBall):
        raise RegionError(
            f"a {type(region).__name__} has no rounding-sound corners; use Box or LinfBall, or "
            "rounding='nearest'"
        )
    center = region.center.double()
    # A Python number as the double that it is, not in torch's default dtype.
    eps = torch.as_tensor(region.eps, dtype=torch.float64, device=center.device)
    lower, upper = center - eps, center + eps
    moved = eps != 0
    lower = torch.where(moved, torch.nextafter(lower, lower.new_tensor(-math.inf)), lower)
    upper = torch.where(moved, torch.nextafter(upper, upper.new_tensor(math.inf)), upper)
    if region.clip is not None:
        lower, upper = lower.clamp(*region.clip), upper.clamp(*region.clip)
    dtype = region.center.dtype
    return Interval(_rounded(lower, dtype, -math.inf), _rounded(upper, dtype, math.inf))


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
