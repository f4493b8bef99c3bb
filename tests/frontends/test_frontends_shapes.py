"""Symbolic tracing knows the sizes that do not depend on the batch, and only those."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import boundgraph as bg
from boundgraph.errors import CaptureError
from boundgraph.frontends.capture import capture


class Of(nn.Module):
    """A model that computes a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def branch_on_width(x: Tensor) -> Tensor:
    return x * 2 if x.shape[1] > 3 and x.size(-1) == 4 else x


def pads_to_even(x: Tensor) -> Tensor:
    batch, *rest = x.shape
    padded = F.pad(x, (0, 0, 0, rest[0] % 2))
    return padded.reshape(batch, padded.shape[1] // 2, 2, *x.shape[2:])


def compares_shapes(x: Tensor) -> Tensor:
    y = x * 2
    return x + y if x.shape == y.shape and x.shape != y[:, :2].shape else y


def grows_in_place(x: Tensor) -> Tensor:
    before = x.shape
    y = (x + 1).unsqueeze_(1)
    return y * len(y.shape) + len(before) + y.size(1)


def slice_of_shape(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[1:].numel()) * x[0].numel()


@fx.wrap
def kept_together(x: Tensor) -> Tensor:
    return x.flip(1) if x.shape[1] == 5 else x


@pytest.mark.parametrize(
    "function",
    [
        branch_on_width,
        pads_to_even,
        compares_shapes,
        grows_in_place,
        slice_of_shape,
        kept_together,
    ],
    ids=lambda function: function.__name__,
)
def test_python_on_sizes_is_followed(function: Callable[[Tensor], Tensor]) -> None:
    model = Of(function)
    captured = capture(model, (torch.zeros(3, 5, 4),), frontend="torch_fx", dynamic_batch=True)
    assert captured.frontend == "torch_fx"
    for batch in (1, 2, 3, 6):
        x = torch.randn(batch, 5, 4, dtype=torch.float32)
        bounds = bg.compile(model, bg.LinfBall(torch.zeros(3, 5, 4), eps=0.1))(
            bg.LinfBall(x, eps=0.0)
        )
        torch.testing.assert_close(bounds.lower, model(x))
        torch.testing.assert_close(bounds.upper, model(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 2 if x.shape[0] > 1 else x,
        lambda x: x * 2 if x.shape == (1, 5, 4) else x,
        lambda x: x * 2 if x.flatten(0, 1).size(0) == 25 else x,
        lambda x: x * 2 if x[:4].shape[0] == 4 else x,
    ],
)
def test_branches_on_the_batch_are_not(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(CaptureError):
        capture(Of(function), (torch.zeros(3, 5, 4),), frontend="torch_fx", dynamic_batch=True)


def test_attention_is_traced() -> None:
    layer = nn.TransformerDecoderLayer(8, 2, 8, batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    captured = capture(layer, (x, x), frontend="torch_fx", dynamic_batch=True)
    other = capture(layer, (x, x), frontend="torch_export", dynamic_batch=True)
    assert {node.op for node in captured.program.nodes} == {n.op for n in other.program.nodes}
