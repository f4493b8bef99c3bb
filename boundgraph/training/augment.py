"""Random small affine moves of images, so that a long certified training overfits less."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.errors import ConfigError


@dataclass(frozen=True)
class Augment:
    """Each image of a batch is turned, stretched and moved by its own random amount.

    Amounts are uniform between minus and plus the values below. Pixels are interpolated
    bilinearly and black comes in from outside, so images stay in the range of the data.
    Draws come from torch's own generator, whose state a checkpoint holds.

    Args:
        rotate: degrees.
        scale: share of the size, each axis on its own.
        shift: pixels, each axis on its own.

    Raises:
        ConfigError: a negative or non-finite amount, or a scale of 1 or more.
    """

    rotate: float = 0.0
    scale: float = 0.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not math.isfinite(value) or value < 0:
                raise ConfigError(f"augment.{name} must be a number >= 0, got {value!r}")
        if self.scale >= 1:
            raise ConfigError(f"augment.scale must lie in [0, 1), got {self.scale!r}")

    def __call__(self, x: Tensor) -> Tensor:
        """Images `[batch, channels, height, width]`, moved."""
        batch, _, height, width = x.shape
        # One draw on the host: a run gives the same images on every device.
        turn, tall, wide, down, right = (torch.rand(5, batch) * 2 - 1).to(x.device, x.dtype)
        angle = turn * math.radians(self.rotate)
        tall, wide = 1 + tall * self.scale, 1 + wide * self.scale
        # affine_grid counts from -1 to 1 over the image, so a pixel is 2 / size.
        down, right = down * self.shift * 2 / height, right * self.shift * 2 / width
        rows = (
            torch.stack([angle.cos() * wide, -angle.sin() * wide, right], 1),
            torch.stack([angle.sin() * tall, angle.cos() * tall, down], 1),
        )
        grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)

    def to_dict(self) -> dict[str, float]:
        """Plain data that `augment_from_dict` reads back."""
        return asdict(self)


def augment_from_dict(data: Mapping[str, Any]) -> Augment:
    """Rebuild an `Augment` from `Augment.to_dict()`.

    Raises:
        ConfigError: a field that it does not have, or a bad value.
    """
    unknown = sorted(set(data) - set(Augment.__dataclass_fields__))
    if unknown:
        raise ConfigError(f"augment has no field {', '.join(map(repr, unknown))}")
    return Augment(**data)
