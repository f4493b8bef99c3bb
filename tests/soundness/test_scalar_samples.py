"""A sample that is a single number is bounded like any other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.testing import check_model


class ScalarPerSample(nn.Module):
    """`[batch, 3]` to `[batch]`, through a relaxed op, a constant and a scale."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x).sum(1)
        return getattr(torch, self.activation)(hidden) * 0.5 + 0.25


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("method", ["crown-ibp", "crown"])
def test_samples_of_one_number_do_not_add_up(activation: str, method: str) -> None:
    """torch sums over all dimensions when given none: offsets of the batch would add up."""
    torch.manual_seed(0)
    model = ScalarPerSample(activation).double()
    center = torch.randn(5, 3, dtype=torch.float64)
    check_model(model, bg.LinfBall(center, 0.3), methods=(method,), points=20)
    whole = bg.bound(model, method=method)(bg.LinfBall(center, 0.3))
    for index in range(5):
        alone = bg.bound(model, method=method)(bg.LinfBall(center[index : index + 1], 0.3))
        torch.testing.assert_close(whole.lower[index], alone.lower[0])
        torch.testing.assert_close(whole.upper[index], alone.upper[0])
