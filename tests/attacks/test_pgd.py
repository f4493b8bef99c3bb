"""PGD: exact on linear models, inside the ball, and without a trace on the model."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from boundgraph.attacks import AttackResult, pgd
from boundgraph.errors import ConfigError, DataError, NonFiniteError, RegionError, SpecError


def network(seed: int = 0, features: int = 6, classes: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(features, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, classes)
    ).eval()


def batch(model: nn.Module, count: int = 8, features: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, features, generator=torch.Generator().manual_seed(1))
    return x, model(x).argmax(1)


def margin_of(logits: Tensor, y: Tensor) -> Tensor:
    own = logits.gather(1, y[:, None]).squeeze(1)
    return own - logits.scatter(1, y[:, None], -torch.inf).amax(1)


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("eps", [0.03, 0.2])
def test_finds_the_exact_optimum_of_a_linear_model(loss: str, eps: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 2).double()
    x = torch.rand(20, 5, dtype=torch.float64)
    y = model(x).argmax(1)
    result = pgd(model, x, y, eps, steps=60, loss=loss, early_stop=False)
    # With two classes the margin is linear, so every element sits at the end that lowers it.
    slope = model.weight[y] - model.weight[1 - y]
    lower, upper = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    best = torch.where(slope > 0, lower, upper)
    expected = margin_of(model(best), y)
    torch.testing.assert_close(result.margin, expected.detach(), rtol=0, atol=1e-12)
    assert torch.equal(result.broken, expected <= 0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    eps=st.floats(0, 2, allow_subnormal=False),
    restarts=st.integers(1, 3),
    steps=st.integers(0, 4),
    loss=st.sampled_from(["ce", "margin", "dlr"]),
    clip=st.sampled_from([None, (0.0, 1.0)]),
    double=st.booleans(),
    early_stop=st.booleans(),
)
def test_every_point_lies_in_the_ball_and_the_clip(
    seed: int,
    eps: float,
    restarts: int,
    steps: int,
    loss: str,
    clip: tuple[float, float] | None,
    double: bool,
    early_stop: bool,
) -> None:
    model = network(seed)
    x, y = batch(model, 4)
    if double:
        model, x = model.double(), x.double()
    radii = eps * torch.rand(4, generator=torch.Generator().manual_seed(seed)).to(x.dtype)
    result = pgd(
        model,
        x,
        y,
        radii,
        steps=steps,
        restarts=restarts,
        loss=loss,
        clip=clip,
        seed=seed,
        early_stop=early_stop,
    )
    # One rounding of x ± eps is all that may separate a point from the real ball.
    slack = torch.finfo(x.dtype).eps * (x.double().abs() + radii.double()[:, None])
    assert ((result.x_adv.double() - x.double()).abs() <= radii.double()[:, None] + slack).all()
    if clip:
        assert result.x_adv.min() >= clip[0] and result.x_adv.max() <= clip[1]
    again = margin_of(model(result.x_adv), y)
    assert torch.equal(result.broken, ~(again > 0))
    assert (result.margin <= margin_of(model(x), y) + 1e-5).all()


def test_leaves_the_model_as_it_was() -> None:
    model = network()
    x, y = batch(model)
    model(x).sum().backward()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    needs = {name: p.requires_grad for name, p in model.named_parameters()}
    pgd(model, x, y, 0.3, steps=5, restarts=2)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, grads[name])
        assert parameter.requires_grad == needs[name]
    assert x.grad is None and not x.requires_grad


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_the_caller_switched_gradients_off(context: type) -> None:
    model = network()
    x, y = batch(model)
    expected = pgd(model, x, y, 0.3, steps=5)
    with context():
        inside = pgd(model, x.clone(), y.clone(), 0.3, steps=5)
    assert torch.equal(expected.x_adv, inside.x_adv)
    assert expected.broken.any()


def test_only_unbroken_samples_cost_gradients() -> None:
    model = network()
    x, y = batch(model)
    wrong = (y + 1) % 4
    result = pgd(model, x, wrong, 0.1, steps=10, restarts=3)
    assert result.broken.all() and result.gradient_evaluations == 0
    assert torch.equal(result.x_adv, x)
    standing = pgd(model, x, y, 0.0, steps=10, restarts=3)
    assert not standing.broken.any()
    assert standing.gradient_evaluations == 10 * 3 * len(x)
    assert standing.bound_evaluations == 0 and standing.seconds > 0


def test_restarts_only_add() -> None:
    model = network(3)
    x, y = batch(model, 32)
    results = [pgd(model, x, y, 0.15, steps=3, restarts=r).broken for r in (1, 2, 4)]
    assert (results[1] >= results[0]).all() and (results[2] >= results[1]).all()


def test_seeds_and_generators_decide_the_result() -> None:
    model = network()
    x, y = batch(model)

    def points(**options: object) -> Tensor:
        return pgd(model, x, y, 0.1, steps=2, early_stop=False, **options).x_adv

    assert torch.equal(points(seed=1), points(seed=1))
    assert not torch.equal(points(seed=1), points(seed=2))
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(points(generator=generator), points(seed=1))


def test_a_radius_of_zero_pins_elements() -> None:
    model = network()
    x, y = batch(model)
    radii = torch.full((6,), 0.3)
    radii[:3] = 0
    x_adv = pgd(model, x, y, radii, early_stop=False).x_adv
    assert torch.equal(x_adv[:, :3], x[:, :3])
    assert not torch.equal(x_adv[:, 3:], x[:, 3:])


def test_a_gradient_of_nan_does_not_leave_the_ball() -> None:
    class Spiky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            # The square root of zero has an infinite slope, times zero: NaN.
            return torch.stack([x[:, 0] + 1, (x[:, 1] * 0).sqrt()], dim=1)

    x = torch.full((2, 2), 0.5)
    result = pgd(Spiky(), x, torch.zeros(2, dtype=torch.long), 0.1)
    assert isinstance(result, AttackResult)
    assert ((result.x_adv - x).abs() <= 0.1 + 1e-7).all() and not result.broken.any()


def test_an_output_of_nan_inside_the_ball_is_broken() -> None:
    class Hole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([(x[:, 0] - 0.45).sqrt() + 1, x[:, 1] * 0], dim=1)

    x = torch.full((1, 2), 0.5)
    assert pgd(Hole(), x, torch.zeros(1, dtype=torch.long), 0.2).broken.all()


def test_bad_arguments_are_named() -> None:
    model = network()
    x, y = batch(model)
    for error, text, call in (
        (RegionError, ">= 0", lambda: pgd(model, x, y, -0.1)),
        (RegionError, "clip", lambda: pgd(model, x + 1, y, 0.1)),
        (NonFiniteError, "NaN", lambda: pgd(model, x * torch.nan, y, 0.1)),
        (SpecError, "out of range", lambda: pgd(model, x, y + 9, 0.1)),
        (SpecError, "integer", lambda: pgd(model, x, y.float(), 0.1)),
        (DataError, "labels", lambda: pgd(model, x, y[:3], 0.1)),
        (DataError, "uint8", lambda: pgd(model, x.byte(), y, 0.1)),
        (DataError, "float64", lambda: pgd(model, x.double(), y, 0.1)),
        (DataError, "no samples", lambda: pgd(model, x[:0], y[:0], 0.1)),
        (DataError, "tensors", lambda: pgd(model, x.numpy(), y, 0.1)),
        (ConfigError, "steps", lambda: pgd(model, x, y, 0.1, steps=-1)),
        (ConfigError, "restarts", lambda: pgd(model, x, y, 0.1, restarts=0)),
        (ConfigError, "loss", lambda: pgd(model, x, y, 0.1, loss="mse")),
        (ConfigError, "step_size", lambda: pgd(model, x, y, 0.1, step_size=-1.0)),
        (ConfigError, "eps of shape", lambda: pgd(model, x, y, torch.ones(3))),
        (ConfigError, "dlr", lambda: pgd(nn.Linear(6, 2), x, y * 0, 0.1, loss="dlr")),
        (SpecError, "logits", lambda: pgd(nn.Identity(), x[..., None], y, 0.1)),
    ):
        with pytest.raises(error, match=text):
            call()


def test_weights_of_nan_are_refused() -> None:
    model = network()
    x, y = batch(model)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="weights"):
        pgd(model, x, y, 0.1)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(6), nn.Dropout(0.5), nn.RReLU()])
def test_training_mode_is_refused_and_the_culprit_named(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(6, 6), layer).train()
    x = torch.rand(2, 6)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=rf"1 \({type(layer).__name__}\).*model.eval\(\)"):
        pgd(model, x, torch.zeros(2, dtype=torch.long), 0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_training_mode_without_consequence_is_fine() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Dropout(0.0)).train()
    x, y = batch(model)
    pgd(model, x, y, 0.1, steps=1)
    assert model.training and model[2].training
