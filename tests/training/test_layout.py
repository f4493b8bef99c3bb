"""The layout that training uses changes strides and nothing else."""

from __future__ import annotations

import torch
from torch import nn

from boundgraph.training.layout import ImageLayout


def _strides(model: nn.Module) -> list[tuple[int, ...]]:
    return [p.stride() for p in model.parameters()]


def test_values_and_objects_stay_and_strides_come_back() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    values, objects, strides = (
        [p.detach().clone() for p in model.parameters()],
        list(model.parameters()),
        _strides(model),
    )
    layout = ImageLayout(model)
    assert layout.active and _strides(model) != strides
    assert layout.batch(torch.rand(2, 3, 3, 3)).is_contiguous(memory_format=torch.channels_last)
    assert all(a is b for a, b in zip(objects, model.parameters(), strict=True))
    layout.restore()
    assert _strides(model) == strides
    assert all(torch.equal(a, b) for a, b in zip(values, model.parameters(), strict=True))


def test_a_layout_of_the_users_own_stays() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    layout = ImageLayout(model)
    assert not layout.active
    layout.restore()
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


def test_models_without_images_are_left_alone() -> None:
    x = torch.rand(2, 4)
    layout = ImageLayout(nn.Linear(4, 2))
    assert not layout.active and layout.batch(x) is x
