"""Training on balls of a p-norm: bounds, gradients, steps and runs use the same ball."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.attacks import pgd
from boundgraph.data.load import load
from boundgraph.domains.balls import ball_size
from boundgraph.errors import ConfigError
from boundgraph.training import MixedLoss, compile_step, fit, get_recipe
from boundgraph.training.adversarial import AdversarialLoss
from boundgraph.training.validation import Validation

EPS = 0.3
METHODS = ("ibp", "symbolic", "mix", "crown-ibp", "crown")
NORMS = (1.0, 2.0, 3.0)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 8), nn.ReLU(),
        nn.Linear(8, 4),
    )  # fmt: skip
    return model.double()


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(5, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])


def bound_loss(model: nn.Module, x: Tensor, y: Tensor, norm: float, method: str) -> Tensor:
    """The cross-entropy of the margins that `bg.compile` bounds over the same balls."""
    region = bg.LpBall(x, EPS, norm, (0.0, 1.0))
    program = bg.compile(model, region, method=method, spec=bg.Margin(4))
    lower = program.run([region.interval()], y).lower
    return F.cross_entropy(-lower.scatter(1, y.unsqueeze(1), 0.0), y)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", NORMS)
def test_bounds_and_gradients_are_those_of_the_ball(method: str, norm: float) -> None:
    model, (x, y) = network(), batch()
    loss = MixedLoss(model, EPS, method=method, subset=None, alpha=1.0, norm=norm)
    parameters = list(model.parameters())
    found = loss(x, y)
    wanted = bound_loss(model, x, y, norm, method)
    assert torch.allclose(found, wanted, rtol=1e-9)
    pairs = zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(wanted, parameters), strict=True
    )
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in pairs)


def test_gradients_by_differences() -> None:
    model, (x, y) = network(), batch()
    loss = MixedLoss(model, EPS, method="crown-ibp", subset=None, alpha=0.5, norm=2.0)
    weight = model[3].weight
    (gradient,) = torch.autograd.grad(loss(x, y), weight)
    way, step = torch.randn_like(weight), 1e-6
    ends = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            weight += sign * step * way
            ends.append(float(loss(x, y)))
            weight -= sign * step * way
    assert float((gradient * way).sum()) == pytest.approx(
        (ends[0] - ends[1]) / (2 * step), rel=1e-4
    )


@pytest.mark.parametrize("method", METHODS)
def test_no_point_of_the_ball_does_worse(method: str) -> None:
    """The bound loss is above the loss at points that an attack on the same ball finds."""
    model, (x, y) = network().eval(), batch()
    loss = MixedLoss(model, EPS, method=method, subset=None, alpha=1.0, norm=2.0)
    bound = float(loss(x, y, return_parts=True).bound_loss)
    attacked = pgd(model, x, y, EPS, norm=2.0, loss="ce", early_stop=False).x_adv
    assert bool((ball_size(attacked - x, 2.0) <= EPS * (1 + 1e-6)).all())
    assert float(F.cross_entropy(model(attacked), y).detach()) <= bound


@torch.no_grad()
def test_subset_beta_and_fusion() -> None:
    model, (x, y) = network(), batch()
    options = {"method": "crown-ibp", "alpha": 1.0, "norm": 2.0}
    mixed = MixedLoss(model, EPS, subset=None, beta=0.0, **options)
    assert float(mixed(x, y)) == pytest.approx(float(bound_loss(model, x, y, 2.0, "ibp")))
    fused = MixedLoss(model, EPS, subset=None, fused=True, **options)
    exact = float(F.cross_entropy(model(x), y))
    assert float(fused(x, y)) >= exact
    some = MixedLoss(model, EPS, subset=2, **options)
    found = some(x, y, index=torch.tensor([1, 3]))
    assert float(found) == pytest.approx(
        float(bound_loss(model, x[[1, 3]], y[[1, 3]], 2.0, "crown-ibp"))
    )


def test_the_step_is_one_graph() -> None:
    """ε may change without compiling anew, and the step is that of eager mode."""
    model, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).double(), batch()
    steps, models = [], []
    for backend in ("aot_eager", None):
        own = copy.deepcopy(model)
        loss = MixedLoss(own, EPS, method="ibp", subset=3, alpha=0.5, norm=2.0, seed=0)
        optimizer = torch.optim.Adam(own.parameters(), lr=1e-2)
        steps.append((compile_step(own, optimizer, loss, backend=backend), loss))
        models.append(own)
    for eps in (0.1, 0.3, 0.0):
        for step, loss in steps:
            loss.set(eps=eps)
            step(x, y)
    assert steps[0][0].mode == "whole"
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("norm", NORMS)
def test_adversarial_points_stay_in_the_ball(norm: float) -> None:
    model, (x, y) = network(), batch()
    loss = AdversarialLoss(model, EPS, norm=norm, seed=0)
    moved = loss.perturb(x, y)
    assert bool((ball_size(moved - x, norm) <= EPS).all())
    assert bool(((moved >= 0) & (moved <= 1)).all())
    assert float(F.cross_entropy(model(moved), y)) > float(F.cross_entropy(model(x), y))


def test_a_run_watches_and_records_its_norm(tmp_path: Path) -> None:
    data = load("digits")
    torch.manual_seed(0)
    side = data.image_shape[-1] * data.image_shape[-2]
    model = nn.Sequential(nn.Flatten(), nn.Linear(side, 16), nn.ReLU(), nn.Linear(16, 10))
    recipe = get_recipe("mixtrain", "digits", epochs=1, method="crown-ibp")
    found = fit(
        model, data, recipe, eps=0.5, norm=2.0, run_dir=tmp_path, compile=False, progress=False,
        validate=100,
    )  # fmt: skip
    assert found.run is not None and found.run.config()["train"]["norm"] == 2.0
    x, y = data.x_test[:100], data.y_test[:100]
    watched = Validation(model.eval(), x, y, 0.5, "crown-ibp", (0.0, 1.0), 2.0).measure()
    options = {"method": "crown-ibp", "norm": 2.0, "attack_steps": 10}
    evaluated = bg.evaluate(model, (x, y), 0.5, **options)
    assert watched["test_certified"] == pytest.approx(evaluated.certified)
    with pytest.raises(ConfigError):
        fit(model, data, recipe, eps=0.5, run_dir=tmp_path, compile=False, progress=False)


@pytest.mark.parametrize("norm", [0.5, math.nan, True, -1.0])
def test_what_is_no_norm(norm: float) -> None:
    with pytest.raises(ConfigError, match="norm"):
        MixedLoss(network(), EPS, norm=norm)
