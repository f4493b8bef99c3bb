"""Bounds of a batch in portions: the loss and the gradients of the whole."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from boundgraph.training import _portions
from boundgraph.training.losses import MixedLoss


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).double()


@pytest.fixture
def parts(monkeypatch):
    """Every batch of six or more in portions of three or four."""
    monkeypatch.setattr(_portions, "BUDGET", 1)
    monkeypatch.setattr(_portions, "LEAST", 3)


def measured(model: nn.Module, x, y, **options):
    loss_fn = MixedLoss(model, 0.1, method="crown-ibp", seed=0, **options)
    found = loss_fn(x, y, return_parts=True)
    # Not the only term of what is differentiated.
    (2.0 * found.loss).backward()
    return [*found, *(p.grad for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("subset", [None, 7])
def test_the_same_loss_and_gradients(parts, monkeypatch, fused, subset):
    x, y = torch.rand(10, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (10,))
    options = {"fused": fused, "subset": subset, "beta": None if fused else 0.7}
    first, found = network(), []
    first[0].bias.requires_grad_(False)
    for _ in range(2):
        found.append(measured(copy.deepcopy(first), x, y, **options))
        monkeypatch.setattr(_portions, "LEAST", 100)
    for mine, want in zip(*found, strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-10, atol=1e-13)


def test_a_gradient_at_the_input_takes_the_batch_whole(parts):
    x = torch.rand(8, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 3, (8,))
    model = network()
    (grad,) = torch.autograd.grad(MixedLoss(model, 0.1, method="crown-ibp", subset=None)(x, y), x)
    assert bool((grad != 0).any())


def test_portions_cover_the_batch_once(parts):
    x, y = torch.rand(10, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (10,))
    loss_fn = MixedLoss(network(), 0.1, method="crown-ibp", subset=None)
    loss_fn.prepare(x, y)
    weights = list(loss_fn.model.parameters())
    for count in range(1, 11):
        found = _portions.portions(loss_fn.program.ir, x[:count], weights)
        assert [i for part in found for i in range(count)[part]] == list(range(count))
        assert len(found) == max(1, count // 3) or count in (4, 5, 7, 8, 10)
        with torch.no_grad():
            assert len(_portions.portions(loss_fn.program.ir, x[:count], weights)) == 1


def test_a_second_gradient_is_refused(parts):
    x, y = torch.rand(8, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (8,))
    model = network()
    loss = MixedLoss(model, 0.1, method="crown-ibp", subset=None, alpha=1.0)(x, y) ** 2
    grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(g.sum() for g in grads).backward()


def test_a_buffer_with_a_gradient_takes_the_batch_whole(parts):
    x, y = torch.rand(8, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (8,))
    loss_fn = MixedLoss(network(), 0.1, method="crown-ibp", subset=None, alpha=1.0)
    loss_fn.eps.requires_grad_()
    (grad,) = torch.autograd.grad(loss_fn(x, y), loss_fn.eps)
    assert float(grad) > 0


def test_a_hook_on_a_gradient_sees_the_whole_one(parts):
    x, y = torch.rand(8, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (8,))
    model, seen = network(), []
    model[3].weight.register_hook(lambda grad: seen.append(grad) or grad.clamp(-1e-3, 1e-3))
    MixedLoss(model, 0.1, method="crown-ibp", subset=None)(x, y).backward()
    assert len(seen) == 1 and float(model[3].weight.grad.abs().max()) <= 1e-3
