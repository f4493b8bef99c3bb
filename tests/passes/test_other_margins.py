"""Margins without the label's own row: the same bounds and loss with one row less."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.domains.specs import OtherMargins
from boundgraph.training._fusion import margin_bound
from boundgraph.training.losses import MixedLoss


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 6), nn.ReLU(),
        nn.Linear(6, 4),
    ).double()  # fmt: skip


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(8, 1, 4, 4, dtype=torch.float64), torch.arange(8) % 4


def without_label(margins: Tensor, labels: Tensor) -> Tensor:
    others = torch.arange(4) != labels.unsqueeze(1)
    return margins[others].unflatten(0, (-1, 3))


@pytest.mark.parametrize("method", ["ibp", "symbolic", "mix", "crown-ibp", "crown", "alpha-crown"])
def test_the_rows_of_margin_but_the_labels(method):
    model, (x, y) = network(), data()
    region = bg.LinfBall(x, 0.1)
    full = bg.compile(model, region, method=method, spec=bg.Margin(4))(region, labels=y)
    rows = bg.compile(model, region, method=method, spec=OtherMargins(4))(region, labels=y)
    for mine, whole in ((rows.lower, full.lower), (rows.upper, full.upper)):
        torch.testing.assert_close(mine, without_label(whole, y), rtol=1e-12, atol=1e-12)


def test_text(golden):
    region = bg.LinfBall(data()[0][:2], 0.1)
    options = {"method": "crown-ibp", "lower_only": True}
    golden(
        "passes/other_margins.txt",
        str(bg.compile(network(), region, spec=OtherMargins(4), **options).ir),
    )


@pytest.mark.parametrize("beta", [None, 0.4])
def test_the_loss_and_its_gradient(beta):
    """Against ten rows and the row of zeros among them."""
    x, y = data()
    region = bg.LinfBall(x, 0.1, clip=(0.0, 1.0))
    found = []
    for others in (True, False):
        model = network()
        if others:
            loss_fn = MixedLoss(model, 0.1, method="crown-ibp", subset=None, alpha=1.0, beta=beta)
            parts = loss_fn(x, y, return_parts=True)
            assert loss_fn.program.ir.outputs[0].type.shape[1] == 3
            loss, certified = parts.loss, parts.certified_accuracy
        else:
            program = bg.compile(
                copy.copy(model), region, method="crown-ibp", spec=bg.Margin(4), lower_only=True,
                tracks=beta is not None,
            )  # fmt: skip
            weight = None if beta is None else torch.tensor(beta, dtype=x.dtype)
            box = region.interval()
            loss, certified = margin_bound(program.run((box,), y), weight)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        found.append((loss, certified, *grads))
    for mine, want in zip(*found, strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-9, atol=1e-12)
