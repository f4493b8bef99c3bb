"""Input regions: the sets of inputs a bound holds for."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.errors import NonFiniteError, RegionError


def linf_interval(
    center: Tensor, eps: float | Tensor, clip: tuple[float, float] | None = None
) -> Interval:
    """`[center − eps, center + eps]`, cut to `clip`. Unchecked and traceable."""
    lower, upper = center - eps, center + eps
    if clip is not None:
        lower, upper = lower.clamp(*clip), upper.clamp(*clip)
    return Interval(lower, upper)


def _require_finite(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise RegionError(f"{name} has dtype {tensor.dtype}; a region needs floating point")
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise NonFiniteError(
            f"{name} holds {bad} NaN or infinite element(s); a region must be finite"
        )


@dataclass(frozen=True, eq=False)
class Box:
    """All `x` with `lower <= x <= upper`, element by element. Zero width is allowed.

    Raises:
        RegionError: shapes or dtypes differ, or `lower > upper` somewhere.
        NonFiniteError: NaN or infinity in an end.
    """

    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        lower, upper = torch.as_tensor(self.lower), torch.as_tensor(self.upper)
        object.__setattr__(self, "lower", lower)
        object.__setattr__(self, "upper", upper)
        if lower.shape != upper.shape or lower.dtype != upper.dtype:
            raise RegionError(
                f"Box ends differ: lower is {lower.dtype}{list(lower.shape)}, "
                f"upper is {upper.dtype}{list(upper.shape)}"
            )
        _require_finite("Box.lower", lower)
        _require_finite("Box.upper", upper)
        wrong = lower > upper
        if bool(wrong.any()):
            first = [int(i) for i in wrong.nonzero()[0]]
            where = tuple(first)
            raise RegionError(
                f"Box has lower > upper at {int(wrong.sum())} element(s), first at index {first}: "
                f"{lower[where].item()} > {upper[where].item()}"
            )

    @property
    def shape(self) -> torch.Size:
        return self.lower.shape

    @property
    def center(self) -> Tensor:
        return self.lower * 0.5 + self.upper * 0.5

    def interval(self) -> Interval:
        return Interval(self.lower, self.upper)


@dataclass(frozen=True, eq=False)
class LinfBall:
    """All points within `eps` of `center` in the maximum norm, cut to `clip`.

    Args:
        center: any shape; dimension 0 is usually the batch.
        eps: radius in input units, a number or a tensor that broadcasts to `center`
            (per-sample or per-element radii; 0 pins an element).
        clip: `(low, high)` range of valid inputs, e.g. `(0.0, 1.0)` for pixels.

    Raises:
        RegionError: `eps < 0`, a shape that does not broadcast, or a centre outside `clip`.
        NonFiniteError: NaN or infinity in the centre or radius.
    """

    center: Tensor
    eps: float | Tensor
    clip: tuple[float, float] | None = field(default=None)

    def __post_init__(self) -> None:
        center = torch.as_tensor(self.center)
        object.__setattr__(self, "center", center)
        _require_finite("LinfBall.center", center)
        eps = torch.as_tensor(self.eps, dtype=center.dtype, device=center.device)
        _require_finite("LinfBall.eps", eps)
        if isinstance(self.eps, Tensor):
            # An eps of another dtype would promote the ends away from the model's.
            object.__setattr__(self, "eps", eps)
        if bool((eps < 0).any()):
            raise RegionError(f"LinfBall.eps must be >= 0, got a minimum of {float(eps.min())}")
        try:
            broadcast = torch.broadcast_shapes(eps.shape, center.shape)
        except RuntimeError:
            broadcast = None
        if broadcast != center.shape:
            raise RegionError(
                f"LinfBall.eps of shape {list(eps.shape)} does not broadcast to the centre's "
                f"{list(center.shape)}"
            )
        if self.clip is not None:
            low, high = self.clip
            if not low <= high:
                raise RegionError(
                    f"LinfBall.clip must be (low, high) with low <= high, got {self.clip}"
                )
            if bool(((center < low) | (center > high)).any()):
                raise RegionError(
                    f"LinfBall.center leaves clip {self.clip}: it ranges over "
                    f"[{float(center.min())}, {float(center.max())}]. Regions are in the units the "
                    "model receives; if the data is normalised, normalise inside the model or "
                    "pass the matching clip"
                )

    @property
    def shape(self) -> torch.Size:
        return self.center.shape

    def interval(self) -> Interval:
        return linf_interval(self.center, self.eps, self.clip)

    @property
    def lower(self) -> Tensor:
        return self.interval().lower

    @property
    def upper(self) -> Tensor:
        return self.interval().upper


Region = Box | LinfBall
