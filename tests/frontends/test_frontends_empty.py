"""A batch of which a model's slices leave nothing; models that fail at some batch sizes."""

import pytest
import torch
from torch import nn

import boundgraph as bg
from boundgraph.errors import CaptureError, UnsupportedError
from boundgraph.frontends._paths import path_problem


class Differences(nn.Module):
    def forward(self, x):
        return torch.relu(x[1:] - x[:-1])


@pytest.mark.parametrize("method", ["crown-ibp", "crown", "alpha-crown"])
def test_a_slice_that_leaves_nothing_of_a_batch_of_one(method):
    with pytest.raises(UnsupportedError, match="no elements to bound") as error:
        bg.bound(Differences(), method=method)(bg.LinfBall(torch.zeros(1, 3), eps=0.1))
    assert "x[1:] - x[:-1]" in str(error.value)


class Picky(nn.Module):
    def forward(self, x):
        if x.shape[0] == 1:
            raise ValueError("one sample is not enough")
        return torch.relu(x)


def test_why_a_model_is_not_dynamic_is_said():
    assert "one sample is not enough" in (path_problem(Picky(), [torch.zeros(3, 2)], [True]) or "")
    assert path_problem(nn.ReLU(), [torch.zeros(3, 2)], [True]) is None
    region = bg.LinfBall(torch.zeros(3, 2), eps=0.1)
    with pytest.raises(CaptureError, match="one sample is not enough"):
        bg.compile(Picky(), region, frontend="torch_export", dynamic_batch=True)
    assert bg.bound(Picky())(region).lower.shape == (3, 2)
