"""A small residual network with batch normalisation, for passes over a training step's graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Images `[batch, 1, 6, 6]` to four logits.

    Args:
        smooth: a sigmoid stands before the last layer.
    """

    def __init__(self, smooth: bool = False) -> None:
        super().__init__()
        self.smooth = smooth
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.last = nn.Linear(3 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.second(x) + x)
        x = x.sigmoid() if self.smooth else x
        return self.last(x.flatten(1))
