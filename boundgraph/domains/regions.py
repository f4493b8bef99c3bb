"""Input regions: the sets of inputs a bound holds for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.balls import BallInterval
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


def ball_interval(
    center: Tensor, eps: float | Tensor, norm: float, clip: tuple[float, float] | None = None
) -> Interval:
    """The ball of a norm around each sample, as bound programs take it. Unchecked and traceable.

    Args:
        center: `[batch, ...]`.
        eps: a number or a 0-d tensor.
        norm: p >= 1, `math.inf` included.
        clip: range of valid inputs, which cuts the box around a ball.
    """
    box = linf_interval(center, eps, clip)
    if norm == math.inf:
        return box
    reach = torch.as_tensor(eps, dtype=center.dtype, device=center.device)
    return BallInterval(box.lower, box.upper, center, reach.expand(center.shape[0]), norm)


def _require_finite(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise RegionError(f"{name} has dtype {tensor.dtype}; a region needs floating point")
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise NonFiniteError(
            f"{name} holds {bad} NaN or infinite element(s); a region must be finite"
        )


def _require_clip(name: str, center: Tensor, clip: tuple[float, float] | None) -> None:
    if clip is None:
        return
    low, high = clip
    if not low <= high:
        raise RegionError(f"{name}.clip must be (low, high) with low <= high, got {clip}")
    if bool(((center < low) | (center > high)).any()):
        raise RegionError(
            f"{name}.center leaves clip {clip}: it ranges over "
            f"[{float(center.min())}, {float(center.max())}]. Regions are in the units the "
            "model receives; if the data is normalised, normalise inside the model or "
            "pass the matching clip"
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
        _require_clip("LinfBall", center, self.clip)

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


@dataclass(frozen=True, eq=False)
class LpBall:
    """All points within `eps` of `center` in the p-norm of each sample, cut to `clip`.

    The norm is taken over all dimensions but the first, which is the batch. Bounds use the
    dual norm where a bound is linear in the input, and the enclosing box elsewhere; `clip`
    cuts the box.

    Args:
        center: `[batch, ...]`.
        eps: radius in input units, a number or `[batch]`.
        p: at least 1; `math.inf` is `LinfBall`.
        clip: `(low, high)` range of valid inputs.

    Raises:
        RegionError: `eps < 0`, p outside [1, inf), no batch dimension, a radius that is not
            one per sample, or a centre outside `clip`.
        NonFiniteError: NaN or infinity in the centre or radius.
    """

    center: Tensor
    eps: float | Tensor
    p: float = 2.0
    clip: tuple[float, float] | None = field(default=None)

    def __post_init__(self) -> None:
        name = type(self).__name__
        center = torch.as_tensor(self.center)
        object.__setattr__(self, "center", center)
        _require_finite(f"{name}.center", center)
        if center.dim() == 0:
            raise RegionError(f"{name}.center needs a batch dimension, got a scalar")
        if not 1.0 <= self.p < math.inf:
            raise RegionError(f"{name}.p must lie in [1, inf), got {self.p}; see LinfBall for inf")
        object.__setattr__(self, "p", float(self.p))
        eps = torch.as_tensor(self.eps, dtype=center.dtype, device=center.device)
        _require_finite(f"{name}.eps", eps)
        if bool((eps < 0).any()):
            raise RegionError(f"{name}.eps must be >= 0, got a minimum of {float(eps.min())}")
        if eps.numel() not in (1, len(center)) or eps.dim() > center.dim():
            raise RegionError(
                f"{name}.eps of shape {list(eps.shape)} is neither a number nor one radius for "
                f"each of {len(center)} samples"
            )
        _require_clip(name, center, self.clip)

    @property
    def shape(self) -> torch.Size:
        return self.center.shape

    @property
    def radius(self) -> Tensor:
        """`[batch]`, one radius for each sample."""
        eps = torch.as_tensor(self.eps, dtype=self.center.dtype, device=self.center.device)
        return eps.reshape(-1).expand(len(self.center))

    def interval(self) -> BallInterval:
        """The enclosing box, with the ball."""
        reach = self.radius
        wide = reach.reshape((-1,) + (1,) * (self.center.dim() - 1))
        box = linf_interval(self.center, wide, self.clip)
        return BallInterval(box.lower, box.upper, self.center, reach, self.p)

    @property
    def lower(self) -> Tensor:
        return self.interval().lower

    @property
    def upper(self) -> Tensor:
        return self.interval().upper


class L2Ball(LpBall):
    """All points within `eps` of `center` in the Euclidean norm; see `LpBall`."""

    def __init__(
        self,
        center: Tensor,
        eps: float | Tensor,
        clip: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(center, eps, 2.0, clip)


class L1Ball(LpBall):
    """All points within `eps` of `center` in the sum of absolute differences; see `LpBall`."""

    def __init__(
        self,
        center: Tensor,
        eps: float | Tensor,
        clip: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(center, eps, 1.0, clip)


Region = Box | LinfBall | LpBall


def ball(center: Tensor, eps: float | Tensor, norm: float, clip: Any = None) -> LinfBall | LpBall:
    """The ball of a norm, `math.inf` included."""
    if norm == math.inf:
        return LinfBall(center, eps, clip)
    return LpBall(center, eps, norm, clip)


def norm_of(region: Region | Tensor) -> float | None:
    """p of a ball that is more than its box, None for boxes and plain tensors."""
    return region.p if isinstance(region, LpBall) else None
