"""Writes through views: what they mean is what the program computes, in every method."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.errors import UnsupportedError
from boundgraph.testing import check_model


class Mask(nn.Module):
    """A constant filled window by window, as shifted windows do, and read through a view."""

    def forward(self, x: Tensor) -> Tensor:
        mask = x.new_zeros(4, 6)
        mask[0:2, 1:3] = 1.0
        mask[2:, ::2] = 2.0
        folded = mask.view(2, 2, 6)
        mask[3] = 5.0
        return x * mask + folded.sum(0).mean()


class Parts(nn.Module):
    """Writes of bounded values, one through a view of a view, read through another."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y[:, 0] = x[:, 1]
        late = y[:, 2:]
        y[:, 2:, 1] += 1.0
        y[:, 1].mul_(3.0)
        late[..., -1] = 0.25
        return torch.relu(y) + late.sum((1, 2))[:, None, None]


class Cleared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.linspace(-1, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias.clone()
        bias[2:4].zero_()
        return x + bias


class Again(nn.Module):
    """The whole is dead at the first write, and read after the second."""

    def forward(self, x: Tensor) -> Tensor:
        y = x + 1.0
        flat = y.view(x.shape[0], -1)
        flat[:, :3] = 0.0
        flat[:, 5:9] *= 2.0
        return y.tanh()


class WritesSlice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        x[:, 0] = 0
        return x


class WritesUnderView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        row = x[:, 0]
        x += 1
        return x + row[:, None]


class Overlap(nn.Module):
    """An element of the target has several places in the view."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.0
        y[:, :1].expand(-1, 4, -1)[:, 1:] += 1.0
        return y


@pytest.mark.parametrize(
    "model",
    [Mask(), Parts(), Cleared(), Again(), WritesSlice(), WritesUnderView()],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.parametrize("frontend", ["torch_fx", "torch_export"])
def test_writes_through_views(model: nn.Module, frontend: str) -> None:
    model = model.double()
    torch.manual_seed(0)
    region = bg.LinfBall(torch.randn(3, 4, 6, dtype=torch.float64), eps=0.1)
    methods = ("ibp", "symbolic", "crown-ibp")
    options = {"frontend": frontend, "dynamic_batch": True}
    check_model(model, region, methods=methods, points=12, **options)
    point = bg.LinfBall(region.center[:1], eps=0.0)
    found = bg.compile(model, point, **options)(point)
    torch.testing.assert_close(found.lower, model(point.center))


def test_overlapping_writes_are_refused() -> None:
    with pytest.raises((UnsupportedError, RuntimeError)):
        bg.compile(Overlap(), bg.LinfBall(torch.zeros(2, 4, 6), eps=0.1))
