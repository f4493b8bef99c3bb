"""The interval-gradient attack."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from boundgraph.attacks import interval, pgd
from boundgraph.errors import ConfigError, RegionError, UnsupportedError


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
    ).eval()


def batch(model: nn.Module, count: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return x, model(x).argmax(1)


@pytest.mark.parametrize("eps", [0.05, 0.2])
def test_one_step_finds_the_exact_optimum_of_a_linear_model(eps: float) -> None:
    """Without PGD: the corner that the bounds point to is the optimum."""
    torch.manual_seed(0)
    model = nn.Linear(5, 2).double()
    x = torch.rand(30, 5, dtype=torch.float64)
    y = model(x).argmax(1)
    result = interval(model, x, y, eps, steps=0, interval_steps=1, box=eps)
    slope = model.weight[y] - model.weight[1 - y]
    best = torch.where(slope > 0, (x - eps).clamp(0, 1), (x + eps).clamp(0, 1))
    logits = model(best)
    breakable = logits.gather(1, y[:, None]) <= logits.gather(1, 1 - y[:, None])
    assert torch.equal(result.broken, breakable.squeeze(1))
    assert torch.equal(result.x_adv[result.broken], best[result.broken])
    assert result.gradient_evaluations == 0
    assert result.bound_evaluations == len(x)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    eps=st.floats(0, 1, allow_subnormal=False),
    corner=st.booleans(),
    steps=st.integers(0, 3),
    random_start=st.booleans(),
)
def test_every_point_lies_in_the_ball_and_the_clip(
    seed: int, eps: float, corner: bool, steps: int, random_start: bool
) -> None:
    model = network(seed)
    x, y = batch(model, 3)
    result = interval(
        model,
        x,
        y,
        eps,
        steps=steps,
        corner=corner,
        restarts=2,
        interval_steps=2,
        random_start=random_start,
        early_stop=False,
    )
    slack = torch.finfo(x.dtype).eps * (x.double().abs() + eps)
    assert ((result.x_adv.double() - x.double()).abs() <= eps + slack).all()
    assert result.x_adv.min() >= 0 and result.x_adv.max() <= 1
    logits = model(result.x_adv)
    own = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    assert torch.equal(result.broken, ~(own - others > 0))


def test_samples_in_small_chunks_give_the_same_result() -> None:
    model = network()
    x, y = batch(model)
    whole = interval(model, x, y, 0.02, steps=2)
    one_by_one = interval(model, x, y, 0.02, steps=2, max_memory=120_000)
    torch.testing.assert_close(whole.x_adv, one_by_one.x_adv)
    assert whole.bound_evaluations == one_by_one.bound_evaluations > 0


def test_one_gradient_budget_is_the_sum_of_its_parts() -> None:
    model = network()
    x, y = batch(model)
    result = interval(model, x, y, 0.0, steps=5, interval_steps=2, restarts=2)
    assert not result.broken.any()
    assert result.gradient_evaluations == len(x) * 2 * (2 + 1) * 5
    # A box of zero width cannot grow: one bound for each step.
    assert result.bound_evaluations == len(x) * 2 * 2


def test_without_interval_steps_it_is_pgd() -> None:
    model = network()
    x, y = batch(model)
    ours = interval(model, x, y, 0.1, interval_steps=0, steps=7)
    theirs = pgd(model, x, y, 0.1, steps=7, loss="margin", random_start=False)
    assert torch.equal(ours.x_adv, theirs.x_adv)


def test_a_model_tied_to_its_batch_size_goes_one_sample_at_a_time() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            batch = int(x.shape[0])
            return self.layer(x.reshape(batch, 16)).relu()

    torch.manual_seed(0)
    model = Tied().eval()
    x, y = batch(model)
    assert (interval(model, x, y, 0.5, steps=1).margin <= pgd(model, x, y, 0.0).margin).all()


def test_leaves_the_model_as_it_was() -> None:
    model = network()
    x, y = batch(model)
    model(x).sum().backward()
    before = copy.deepcopy(model.state_dict())
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    interval(model, x, y, 0.3, steps=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, grads[name]) for name, p in model.named_parameters())
    assert not model.training


def test_lost_dependence_is_an_error_that_says_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Softmax(1), nn.Linear(16, 3)).eval()
    x, y = batch(model)
    with pytest.raises(UnsupportedError, match="linear dependence"):
        interval(model, x, y, 0.1)


def test_bad_arguments_are_named() -> None:
    model = network()
    x, y = batch(model)
    for error, text, options in (
        (ConfigError, "interval_steps", {"interval_steps": -1}),
        (ConfigError, "growth", {"growth": 1.0}),
        (ConfigError, "box", {"box": -0.1}),
        (ConfigError, "max_memory", {"max_memory": 10}),
        (ConfigError, "loss", {"loss": "mse"}),
    ):
        with pytest.raises(error, match=text):
            interval(model, x, y, 0.1, **options)
    with pytest.raises(RegionError):
        interval(model, x, y, -0.1)
