"""Emitted programs run, and repeat bit for bit, under deterministic algorithms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import boundgraph as bg
from boundgraph.training.losses import MixedLoss


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def network(classes: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 8), nn.Sigmoid(), nn.Linear(8, classes),
    )  # fmt: skip


# 40 classes: above 32 a margin takes the rows of each sample by itself.
@pytest.mark.parametrize(("device", "classes"), [("cuda", 5), ("cpu", 40)])
@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "mix"])
def test_losses_and_gradients_repeat(method, device, classes):
    x, y = torch.rand(4, 1, 4, 4), torch.randint(0, classes, (4,))
    runs = []
    for _ in range(2):
        model = network(classes)
        if method == "mix":
            model.eval()
        loss_fn = MixedLoss(model, 0.1, method=method, subset=3, seed=0)
        loss_fn.tune_for = device
        loss = loss_fn(x, y)
        loss.backward()
        runs.append((loss, *(p.grad for p in model.parameters())))
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_nothing_emitted_for_training_indexes_with_labels():
    """Indexing by labels is what would scatter, and add atomically, in the gradient."""
    for classes in (5, 40):
        x, y = torch.rand(4, 1, 4, 4), torch.randint(0, classes, (4,))
        for method in ("ibp", "crown-ibp"):
            loss_fn = MixedLoss(network(classes), 0.1, method=method)
            loss_fn.prepare(x, y)
            code = loss_fn.program.graph_module.code
            assert "[labels]" not in code
            assert "gather" not in code
            assert "index" not in code


def test_bounds_repeat():
    x = torch.rand(3, 1, 4, 4)
    model = network(5).eval()
    for method in ("ibp", "mix", "crown"):
        program = bg.compile(model, bg.LinfBall(x, 0.1), method=method)
        first, second = program(bg.LinfBall(x, 0.1)), program(bg.LinfBall(x, 0.1))
        assert torch.equal(first.lower, second.lower)
        assert torch.equal(first.upper, second.upper)
