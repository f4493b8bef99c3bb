"""One torchvision network of each family that is no classifier, at a tiny size."""

from __future__ import annotations

import pytest
import torch
from torchvision import models

import boundgraph as bg
from boundgraph.testing import check_model

SHAPES = {"lraspp_mobilenet_v3_large": (3, 16, 16), "r3d_18": (3, 2, 8, 8)}


@pytest.mark.parametrize("name", SHAPES)
def test_other_families_are_enclosed(name: str) -> None:
    torch.manual_seed(0)
    backbone = {"weights_backbone": None} if name.startswith("lraspp") else {}
    model = models.get_model(name, weights=None, num_classes=2, **backbone).eval()
    # float64, since intervals of an untrained deep network are wide.
    region = bg.LinfBall(torch.rand(1, *SHAPES[name], dtype=torch.float64), eps=1e-4)
    check_model(model.double(), region, methods=("ibp",), points=4, dynamic_batch=True)
