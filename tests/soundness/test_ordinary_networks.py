"""Networks as people write them, beyond those of a library: captured, bounded, enclosed."""

from __future__ import annotations

import pytest
import torch
from ordinary_networks import FIXED, NETWORKS, build
from torch import nn
from torch.utils import _pytree as pytree

import boundgraph as bg
from boundgraph.testing import check_model

METHODS = ("ibp", "crown-ibp")
KINDS = [(dtype, batch) for dtype in (torch.float32, torch.float64) for batch in (1, 3)]


def check(name: str, dtype: torch.dtype, batch: int, points: int) -> None:
    """Sampled points are enclosed for any batch size, and every bound is finite."""
    model, inputs = build(name, dtype, batch)
    regions = [
        x.abs().round() if i in FIXED.get(name, ()) else bg.LinfBall(x, eps=0.05)
        for i, x in enumerate(inputs)
    ]
    check_model(model, *regions, methods=METHODS, points=points, dynamic_batch=True)
    for method in METHODS:
        check_finite(model, regions, method)


def check_finite(model: nn.Module, regions: list[object], method: str) -> None:
    bounds = bg.bound(model, method=method)(*regions)
    ends = pytree.tree_leaves((bounds.lower, bounds.upper))
    assert all(bool(end.isfinite().all()) for end in ends)


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str) -> None:
    dtype, batch = KINDS[list(NETWORKS).index(name) % len(KINDS)]
    check(name, dtype, batch, points=9)


@pytest.mark.nightly
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("dtype", "batch"), KINDS)
def test_network_at_many_points(name: str, dtype: torch.dtype, batch: int) -> None:
    check(name, dtype, batch, points=201)
