"""Transformers, recurrent networks, U-Nets: captured for any batch, and enclosed."""

from __future__ import annotations

import pytest
import torch
from whole_networks import NETWORKS

import boundgraph as bg
from boundgraph.testing import check_model


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_every_method_encloses(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    model = build().to(dtype).eval()
    center = torch.randn(3, *shape, dtype=dtype)
    region = bg.LinfBall(center, eps=0.05)
    check_model(
        model, region, methods=("ibp", "symbolic", "crown-ibp"), points=12, dynamic_batch=True
    )
