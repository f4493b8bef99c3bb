"""Choices that depend on the region: bounded where they are tensors, clear errors elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.errors import CaptureError, UnsupportedError
from boundgraph.testing import check_model

CHOICES: dict[str, Callable[[Tensor], Tensor]] = {
    "where": lambda x: torch.where(x > 0.3, x * 2.0, 1.0 - x),
    "where, turned": lambda x: torch.where(x <= 0.3, x * x, x.flip(1)),
    "two bounded sides": lambda x: torch.where(x <= x.flip(1), x, -x),
    "product with a mask": lambda x: x * (x > 0.0) + (x < 0.0) * 0.1,
    "mask as numbers": lambda x: x * (x > 0.0).to(x.dtype) - (x >= 0.5).float().to(x.dtype),
    "masked_fill": lambda x: x.masked_fill(x < 0.0, 0.5),
    "and": lambda x: torch.where((x > -0.2) & (x < x.flip(1)), x, 0.5 - x),
    "or": lambda x: x.masked_fill((x > 0.6) | torch.logical_not(x >= -0.6), 0.5),
    "exclusive": lambda x: torch.where((x > 0.0) ^ (x < 0.5), x, -x),
    "not": lambda x: torch.where(~(x > 0.1), x, 2.0 * x),
    "with a fixed mask": lambda x: x * (torch.logical_and(x > 0.0, torch.arange(4) > 1)),
    "equal": lambda x: torch.where(x.relu() == 0.0, x, 1.0 + x) + x.masked_fill(x != x.flip(1), 0),
}


class Of(nn.Module):
    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x - 0.1 * x.flip(1)) * 0.5


@pytest.mark.parametrize("name", CHOICES)
def test_bounds_enclose(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    center = torch.randn(3, 4, generator=generator)
    region = bg.LinfBall(center, 0.2)
    methods = ("ibp", "symbolic", "crown-ibp", "crown")
    check_model(Of(CHOICES[name]), region, methods=methods, points=20, dynamic_batch=True)


def test_a_region_may_decide_every_comparison_of_a_mask() -> None:
    """Exact at points, whatever the mask is made of."""
    x = torch.tensor([[-1.0, 0.0, 0.25, 2.0]])
    names = ("and", "or", "exclusive", "not", "with a fixed mask", "equal")
    for name in names:
        model = CHOICES[name]
        bounds = bg.bound(Direct(model), method="ibp")(bg.LinfBall(x, 0.0))
        assert torch.equal(bounds.lower, model(x)), name
        assert torch.equal(bounds.upper, model(x)), name


class Direct(nn.Module):
    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x)


def test_a_region_may_decide() -> None:
    """Far from the threshold the bounds are those of the side that is chosen."""
    model = Of(lambda x: torch.where(x > 0.0, x * 2.0, x * 100.0))
    chosen = Of(lambda x: x * 2.0)
    region = bg.LinfBall(torch.full((2, 4), 3.0), 0.5)
    for method in ("ibp", "crown-ibp", "crown"):
        found = bg.bound(model, method=method)(region)
        expected = bg.bound(chosen, method=method)(region)
        torch.testing.assert_close(found.lower, expected.lower)
        torch.testing.assert_close(found.upper, expected.upper)


def test_an_undecided_choice_keeps_both_sides() -> None:
    model = nn.Sequential(nn.Identity(), Of(lambda x: torch.where(x > 0.0, 5.0, -7.0)))
    bounds = bg.bound(model, method="crown")(bg.LinfBall(torch.zeros(1, 4), 0.1))
    assert bool((bounds.lower <= -3.5).all()) and bool((bounds.upper >= 2.5).all())


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: torch.where((x > 0.0).any(1, keepdim=True), x, 0.0 * x),
        lambda x: torch.where(torch.isclose(x, x.flip(1)), x, x + 1.0),
        lambda x: x.gather(1, x.argmax(1, keepdim=True)),
    ],
)
def test_other_choices_are_refused_with_their_line(fn: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UnsupportedError, match=r"test_choice\.py"):
        bg.bound(Of(fn), method="ibp")(bg.LinfBall(torch.zeros(2, 4), 0.1))


def branch(x: Tensor) -> Tensor:
    return x * 2.0 if x.sum() > 0 else x * 3.0


def loop(x: Tensor) -> Tensor:
    while (x > 1.0).any():
        x = x * 0.5
    return x


def count(x: Tensor) -> Tensor:
    return x * int(x.max().item())


@pytest.mark.parametrize("fn", [branch, loop, count])
def test_control_flow_on_values_is_refused_with_its_line(fn: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(CaptureError, match=r"value of a tensor[\s\S]*test_choice\.py"):
        bg.bound(Of(fn), method="ibp")(bg.LinfBall(torch.zeros(2, 4), 0.1))


def test_control_flow_on_shapes_is_followed() -> None:
    def fn(x: Tensor) -> Tensor:
        return x[:, :2] if x.shape[1] > 3 and x.shape[0] != 0 else x

    check_model(Of(fn), bg.LinfBall(torch.randn(2, 4), 0.1), methods=("ibp", "crown"), points=6)
