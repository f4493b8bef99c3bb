"""Running statistics move once for each clean pass, and never by the bounds."""

import copy

import pytest
import torch
from torch import nn

import boundgraph as bg


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_running_statistics_move_once_per_batch(momentum, method):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5, momentum=momentum), nn.ReLU(), nn.Linear(5, 3)
    )
    plain = copy.deepcopy(model)
    loss = bg.training.MixedLoss(model, eps=0.1, method=method, subset=3, clip=None)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    # Two batches whose gradients are accumulated, as in one step of an optimizer.
    for _ in range(2):
        x = torch.rand(6, 4)
        loss(x, labels).backward()
        plain(x)
    assert int(model[1].num_batches_tracked) == 2
    assert model[1].momentum == momentum
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(model[1], name), getattr(plain[1], name))
    assert model[0].weight.grad is not None
