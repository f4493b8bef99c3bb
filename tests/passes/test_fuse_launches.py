"""Products merged for CUDA devices: the same bounds and gradients, by fewer calls."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import boundgraph as bg
from boundgraph.training.losses import MixedLoss


def network(hidden: int = 6, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, 5, bias=False), nn.ReLU(),
        nn.Linear(5, classes),
    ).double()  # fmt: skip


def compiled(device: str, **options):
    x = torch.zeros(4, 2, 4, dtype=torch.float64)
    return bg.compile(network(), bg.LinfBall(x, 0.1), spec=bg.Margin(3), tune_for=device, **options)


def test_text(golden):
    before = compiled("cpu", lower_only=True)
    after = compiled("cuda", lower_only=True)
    names = [record.name for record in after.records]
    assert "pair-products{largest=1048576}" in names
    assert "margin-product{classes=16}" in names
    golden("passes/fuse_launches.txt", f"# before\n{before.ir}\n# after\n{after.ir}")


@pytest.mark.parametrize("lower_only", [True, False])
def test_the_same_bounds(lower_only):
    x = torch.rand(7, 2, 4, dtype=torch.float64)
    labels = torch.arange(7) % 3
    region = bg.LinfBall(x, 0.07)
    plain = compiled("cpu", lower_only=lower_only)(region, labels=labels)
    fused = compiled("cuda", lower_only=lower_only)(region, labels=labels)
    torch.testing.assert_close(fused.lower, plain.lower)
    assert torch.equal(fused.lower.gather(1, labels[:, None]), torch.zeros(7, 1).double())
    if lower_only:
        assert bool(fused.upper.isinf().all())
    else:
        torch.testing.assert_close(fused.upper, plain.upper)


def test_bounds_enclose_the_model():
    report = bg.testing.check_model(
        network(), bg.LinfBall(torch.rand(3, 2, 4, dtype=torch.float64), 0.2), tune_for="cuda"
    )
    assert report


def test_large_weights_and_many_classes_stay_apart():
    program = compiled("cuda", lower_only=True)
    assert "linear_pair" in str(program.ir)
    wide = bg.compile(
        nn.Sequential(nn.Linear(1025, 1024), nn.ReLU(), nn.Linear(1024, 17)),
        bg.LinfBall(torch.zeros(2, 1025), 0.1),
        spec=bg.Margin(17),
        tune_for="cuda",
        lower_only=True,
    )
    assert "linear_pair" not in str(wide.ir)
    assert "margin_lower" not in str(wide.ir)


def test_training_takes_them_with_equal_gradients():
    x, y = torch.rand(6, 2, 4, dtype=torch.float64), torch.randint(0, 3, (6,))
    grads = []
    for device in ("cpu", "cuda"):
        model = copy.deepcopy(network())
        loss_fn = MixedLoss(model, 0.1, subset=None)
        loss_fn.tune_for = device
        loss_fn(x, y).backward()
        assert ("margin_lower" in str(loss_fn.program.ir)) == (device == "cuda")
        grads.append([p.grad for p in model.parameters()])
    for plain, fused in zip(*grads, strict=True):
        torch.testing.assert_close(fused, plain)
