"""Intervals through layers and relu as steps: against the rules and automatic gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from boundgraph import ops
from boundgraph.domains import interval_steps
from boundgraph.domains.interval import Interval
from boundgraph.domains.interval_steps import layer_interval, relu_interval

CONV = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}
LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "linear": ((6,), (5, 6), {}),
    "one channel": ((1, 6, 7), (3, 1, 3, 3), CONV),
    "channels": ((3, 6, 7), (4, 3, 3, 2), CONV),
}


@pytest.fixture(params=[1, 1 << 20])
def size(request, monkeypatch):
    """|W| in parts of one row or whole; images in channels-last order or not."""
    monkeypatch.setattr(interval_steps, "_PART", request.param)
    monkeypatch.setattr(interval_steps, "LARGE", request.param)


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("ends", [True, False])
def test_a_layer_equals_its_rule(name, biased, ends):
    shape, kernel, attrs = LAYERS[name]
    generator = torch.Generator().manual_seed(1)
    weight = draw(generator, *kernel)
    # The gradient of |w| at 0 is 0.
    weight.flatten()[::3] = 0.0
    given = [draw(generator, 2, *shape), draw(generator, 2, *shape).abs(), weight]
    given += [draw(generator, kernel[0])] if biased else []
    spec = ops.get("conv2d" if attrs else "linear")
    rest = attrs | {"groups": 1} if attrs else {}
    found = []
    for step in (True, False):
        leaves = [value.clone().requires_grad_() for value in given]
        x = Interval.from_center_radius(leaves[0], leaves[1])
        if step:
            out = layer_interval(x, *leaves[2:], ends=ends, features=(), **attrs)
        else:
            out = spec.interval(x, *leaves[2:], **rest)
        weights = torch.sin(torch.arange(out.lower.numel(), dtype=torch.float64))
        weights = weights.view(out.lower.shape)
        total = (out.lower * weights).sum() + (out.upper * weights.flip(0)).sum()
        found.append((out.lower, out.upper, *torch.autograd.grad(total, leaves)))
    for mine, want in zip(*found, strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-12, atol=1e-12)


def test_only_wanted_gradients_are_made():
    """The first layer's operand has none; a weight that is not trained has none either."""
    weight = torch.randn(3, 2, 3, 3)
    center = torch.randn(2, 2, 5, 5, requires_grad=True)
    x = Interval.from_center_radius(center, torch.rand(2, 2, 5, 5))
    attrs = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    out = layer_interval(x, weight, ends=True, features=(), **attrs)
    (grad,) = torch.autograd.grad(out.lower.sum() + out.upper.sum(), center)
    assert grad.shape == center.shape and weight.grad is None


def test_relu_equals_its_rule():
    ends = [[-2, -1], [1, 3], [-1, 2], [0, 0], [-2, 0], [0, 2], [-1e-30, 1e30], [5, 5]]
    found = []
    for step in (True, False):
        lower, upper = torch.tensor(ends, dtype=torch.float64).T.clone().unbind()
        lower.requires_grad_(), upper.requires_grad_()
        x = Interval(lower, upper)
        out = relu_interval(x) if step else ops.get("relu").interval(x)
        weights = torch.linspace(0.5, 2, len(ends), dtype=torch.float64)
        total = (out.center * weights).sum() - (out.radius * weights.flip(0)).sum()
        found.append((out.center, out.radius, *torch.autograd.grad(total, (lower, upper))))
    for mine, want in zip(*found, strict=True):
        assert torch.equal(mine, want)


def test_a_nan_bound_is_kept():
    for lower, upper in ((torch.nan, 1.0), (-1.0, torch.nan)):
        out = relu_interval(Interval(torch.tensor([lower]), torch.tensor([upper])))
        assert bool(out.center.isnan() & out.radius.isnan())
    x = Interval.from_center_radius(torch.tensor([[torch.nan]]), torch.zeros(1, 1))
    assert bool(layer_interval(x, torch.ones(1, 1), ends=True, features=()).lower.isnan())


def test_a_second_gradient_is_refused():
    lower = -torch.ones(2, requires_grad=True)
    out = relu_interval(Interval(lower, torch.ones(2)))
    (grad,) = torch.autograd.grad(out.center.sum() ** 2, lower, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
