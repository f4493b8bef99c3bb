"""Loss fusion bounds the largest loss of the region; beta mixes it with interval bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.errors import ConfigError
from boundgraph.ops.loss import negative_loss
from boundgraph.training import MixedLoss
from boundgraph.training._fusion import margin_losses
from boundgraph.training.recipes import get_recipe, recipe_from_dict


def _net(seed: int, classes: int = 4, scale: float = 1.0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, classes)
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def _data(classes: int = 4) -> tuple[Tensor, Tensor]:
    torch.manual_seed(7)
    return torch.rand(6, 5, dtype=torch.float64), torch.randint(0, classes, (6,))


def _bound(model: nn.Module, eps: float, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    options = {"method": "crown-ibp", "subset": None, "alpha": 1.0, "clip": None} | options
    return MixedLoss(model, eps, **options)(x, y)  # type: ignore[no-any-return]


def _per_sample(model: nn.Module, eps: float, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    return torch.stack(
        [_bound(model, eps, x[i : i + 1], y[i : i + 1], **options) for i in range(len(x))]
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("eps", "scale"), [(0.02, 1.0), (0.3, 1.0), (0.1, 6.0)])
def test_no_point_of_the_region_has_a_larger_loss(seed: int, eps: float, scale: float) -> None:
    model, (x, y) = _net(seed, scale=scale), _data()
    bound = _per_sample(model, eps, x, y, fused=True)
    worst = F.cross_entropy(model(x), y, reduction="none")
    points = [x + eps * (torch.rand_like(x) * 2 - 1) for _ in range(30)]
    points += [x + eps * torch.sign(torch.randn_like(x)) for _ in range(60)]
    moved = x.clone()
    for _ in range(15):
        moved = moved.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(moved), y, reduction="sum"), moved)
        moved = x + eps * torch.sign(gradient)
        points.append(moved)
    for point in points:
        worst = torch.maximum(worst, F.cross_entropy(model(point), y, reduction="none"))
    # float64 and five layers: what rounding can do is far below the last digit compared.
    rounding = 64 * torch.finfo(torch.float64).eps * (1 + worst.abs()) * scale**3
    assert bool((bound >= worst - rounding).all())


@pytest.mark.parametrize("seed", range(3))
def test_fused_is_never_above_the_interval_loss(seed: int) -> None:
    model, (x, y) = _net(seed), _data()
    for eps in (0.0, 0.05, 0.5):
        fused = _per_sample(model, eps, x, y, fused=True)
        interval = _per_sample(model, eps, x, y, method="ibp")
        assert bool((fused <= interval + 1e-12).all())


def test_one_linear_layer_with_two_classes_is_exact() -> None:
    torch.manual_seed(0)
    model, (x, y) = nn.Linear(5, 2).double(), _data(2)
    margin = (model.weight[y] - model.weight[1 - y]).abs().sum(1)
    logits = model(x)
    exact = F.softplus(
        logits.gather(1, (1 - y)[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0] + 0.2 * margin
    )
    assert torch.allclose(_per_sample(model, 0.2, x, y, fused=True), exact, rtol=1e-12)
    assert torch.allclose(_per_sample(model, 0.2, x, y), exact, rtol=1e-12)


def test_radius_zero_is_the_clean_loss() -> None:
    model, (x, y) = _net(0), _data()
    assert torch.allclose(_bound(model, 0.0, x, y, fused=True), F.cross_entropy(model(x), y))


@pytest.mark.parametrize("fused", [True, False])
def test_beta_moves_from_backward_to_interval_bounds(fused: bool) -> None:
    model, (x, y) = _net(1), _data()
    loss_fn = MixedLoss(
        model, 0.1, method="crown-ibp", subset=None, alpha=1.0, clip=None, fused=fused, beta=1.0
    )
    backward = loss_fn(x, y)
    program = loss_fn.program
    assert torch.allclose(backward, _bound(model, 0.1, x, y, fused=fused))
    loss_fn.set(beta=0.0)
    assert torch.allclose(loss_fn(x, y), _bound(model, 0.1, x, y, method="ibp"))
    loss_fn.set(beta=0.5)
    middle = loss_fn(x, y)
    assert loss_fn.program is program
    interval = _bound(model, 0.1, x, y, method="ibp")
    assert bool((backward < middle) & (middle < interval))
    state = loss_fn.training_state()
    loss_fn.set(beta=0.0)
    loss_fn.load_training_state(state)
    assert float(loss_fn.beta) == 0.5  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_gradients_are_finite_and_reach_every_weight(scale: float) -> None:
    model, (x, y) = _net(2, scale=scale).float(), _data()
    _bound(model, 0.3, x.float(), y, fused=True).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())  # type: ignore[arg-type]


def test_the_gradient_is_that_of_the_bound() -> None:
    model, (x, y) = _net(3), _data()
    weight = model[0].weight
    loss = _bound(model, 0.1, x, y, fused=True)
    (gradient,) = torch.autograd.grad(loss, weight)
    way = torch.randn_like(weight)
    with torch.no_grad():
        weight.add_(way, alpha=1e-6)
        above = _bound(model, 0.1, x, y, fused=True)
        weight.sub_(way, alpha=2e-6)
        below = _bound(model, 0.1, x, y, fused=True)
    assert torch.allclose((above - below) / 2e-6, (gradient * way).sum(), rtol=1e-4)


def test_the_lines_enclose_the_loss_from_both_sides() -> None:
    from boundgraph.domains.interval import Interval
    from boundgraph.domains.linear_form import LinearForm

    torch.manual_seed(0)
    lower = torch.randn(50, 4, dtype=torch.float64) * 4
    box = Interval(lower, lower + torch.rand_like(lower) * 6 * (torch.rand_like(lower) < 0.8))
    rows = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    assert negative_loss.backward is not None
    form = negative_loss.backward(
        LinearForm(rows), box, operand=0, carry=True, shapes=(), target=(), sample_dims=()
    )
    for _ in range(200):
        point = box.lower + torch.rand_like(lower) * (box.upper - box.lower)
        value = rows * negative_loss.concrete(point)
        line = (form.coeff * point).sum(2) + form.offset
        assert bool((line <= value + 1e-12).all())


@pytest.mark.parametrize(
    "options",
    [
        {"method": "ibp", "fused": True},
        {"method": "crown", "fused": True},
        {"method": "ibp", "beta": 0.5},
        {"method": "crown-ibp", "beta": 1.5},
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        MixedLoss(_net(0), 0.1, **options)
    with pytest.raises(ConfigError, match="no beta"):
        MixedLoss(_net(0), 0.1, method="crown-ibp").set(beta=0.5)


def test_the_recipe_ramps_beta_and_survives_its_dictionary() -> None:
    recipe = get_recipe("crown-ibp", "digits")
    assert recipe_from_dict(recipe.to_dict()) == recipe
    model = _net(0)
    loss_fn = recipe.make_loss(model, 0.1)
    optimizer = recipe.make_optimizer(model)
    betas = []
    for step in (0, 20, 99):
        recipe.apply(loss_fn, optimizer, target_eps=0.1, step=step, total=100)
        betas.append(float(loss_fn.beta))  # type: ignore[arg-type]
    assert betas[0] == 1.0
    assert 0.0 < betas[1] < 1.0
    assert betas[2] == 0.0


def test_a_fused_program_is_saved_and_loaded(tmp_path: object) -> None:
    model, (x, y) = _net(0), _data()
    loss_fn = MixedLoss(model, 0.1, method="crown-ibp", subset=None, fused=True, beta=1.0)
    program = loss_fn.prepare(x, y) or loss_fn.program
    program.save(f"{tmp_path}/loss.bgp")
    again = bg.load(f"{tmp_path}/loss.bgp")
    region = (loss_fn.region(x),)
    first, second = program.run(region, y), again.run(region, y)
    assert all(torch.equal(a.lower, b.lower) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_negligible_classes_change_no_loss_and_get_no_denormal_gradient(dtype):
    margins = torch.tensor([[0.0, -3.0, 60.0, 95.0], [0.0, -200.0, -100.0, -199.0]], dtype=dtype)
    margins.requires_grad_()
    losses = margin_losses(margins)
    assert torch.equal(losses, torch.logsumexp(-margins, 1))
    (grad,) = torch.autograd.grad(losses.sum(), margins)
    plain = -torch.softmax(-margins.detach(), 1)
    small = plain.abs() < 1e-20
    assert small.any() and torch.equal(grad[small], torch.zeros_like(grad[small]))
    torch.testing.assert_close(grad, plain)


def test_margins_that_are_not_finite_stay_visible_in_the_loss():
    margins = torch.tensor([[0.0, torch.nan], [0.0, -torch.inf], [0.0, torch.inf]])
    losses = margin_losses(margins)
    assert losses[0].isnan() and losses[1] == torch.inf and losses[2] == 0.0
