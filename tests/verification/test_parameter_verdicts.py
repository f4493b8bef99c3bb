"""Verdicts and certified accuracy over regions of weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import boundgraph as bg
from boundgraph.errors import ConfigError, RegionError, UnsupportedError

METHODS = ("ibp", "crown-ibp", "crown")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()


def weights(model: nn.Module, eps: float) -> dict[str, bg.LinfBall]:
    return {name: bg.LinfBall(p.detach().clone(), eps) for name, p in model.named_parameters()}


def batch(model: nn.Module, count: int = 12) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.rand(count, 4, dtype=torch.float64)
    return x, model(x).argmax(1).detach()


def lowest_margin(
    model: nn.Module, regions: dict[str, bg.LinfBall], x: Tensor, y: Tensor, eps: float
) -> Tensor:
    """`[batch]`: the smallest margin at corners of weights and inputs."""
    found = torch.full((len(x),), torch.inf, dtype=x.dtype)
    for _ in range(200):
        chosen = {
            name: region.center + region.eps * torch.randn_like(region.center).sign()
            for name, region in regions.items()
        }
        point = (x + eps * torch.randn_like(x).sign()).clamp(0, 1)
        logits = functional_call(model, chosen, (point,)).detach()
        own = logits.gather(1, y[:, None])
        others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        found = torch.minimum(found, own[:, 0] - others)
    return found


@pytest.mark.parametrize("rounding", ["nearest", "sound"])
def test_what_is_proved_holds_for_all_weights(rounding: str) -> None:
    model = network()
    x, y = batch(model)
    regions = weights(model, 0.01)
    region = bg.LinfBall(x, 0.01, (0.0, 1.0))
    options = {"labels": y, "methods": METHODS, "rounding": rounding}
    plain = bg.verify(model, region, bg.Margin(3), **options)
    found = bg.verify(model, region, bg.Margin(3), parameters=regions, **options)
    proved = torch.tensor([verdict.name == "proved" for verdict in found])
    assert 0 < int(proved.sum()) < sum(verdict.name == "proved" for verdict in plain)
    assert bool((lowest_margin(model, regions, x, y, 0.01)[proved] > 0).all())
    result = bg.evaluate(
        model, (x, y), 0.01, method=METHODS, parameters=regions, attack_steps=3, rounding=rounding
    )
    assert result.masks is not None
    assert torch.equal(result.masks.certified, proved)
    assert result.attacked_correct >= result.certified_correct


def test_one_layer_is_exact() -> None:
    """W·x at x = (1, 0): the margin is `w11 − w21` and falls by 2ε of the weights."""
    model = nn.Linear(2, 2, bias=False).double().eval()
    model.weight.data.copy_(torch.eye(2))
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for eps, verdict in ((0.49, "proved"), (0.51, "unknown")):
        found = bg.verify(
            model, x, bg.Margin(2), labels=0, parameters=weights(model, eps), methods=["ibp"]
        )
        assert found.name == verdict
    moved = bg.LinfBall(x, 0.3)
    for eps, verdict in ((0.1, "proved"), (0.25, "unknown")):
        found = bg.verify(
            model, moved, bg.Margin(2), labels=0, parameters=weights(model, eps), methods=["ibp"]
        )
        assert found.name == verdict, eps


def test_a_counterexample_is_an_input() -> None:
    model = network()
    x, y = batch(model, 1)
    found = bg.verify(
        model, bg.LinfBall(x, 2.0), bg.Margin(3), labels=y, parameters=weights(model, 0.01)
    )
    assert found.name == "refuted"


def test_refusals() -> None:
    model = network()
    x, y = batch(model, 1)
    region, spec = bg.LinfBall(x, 0.01), bg.Margin(3)
    bias = model[0].bias.detach()
    outside = {"0.bias": bg.LinfBall(bias + 1.0, 0.1)}
    for call in (
        lambda: bg.verify(model, region, spec, labels=y, parameters=outside),
        lambda: bg.evaluate(model, (x, y), 0.01, parameters=outside),
    ):
        with pytest.raises(RegionError, match="outside its region"):
            call()
    with pytest.raises(ConfigError, match="fixed weights"):
        bg.verify(model, region, spec, labels=y, parameters=weights(model, 0.01), certificate=True)
    with pytest.raises(RegionError, match="nothing"):
        bg.verify(model, region, spec, labels=y, parameters={"nothing": bg.LinfBall(bias, 0.1)})
    with pytest.raises(RegionError, match="no input is perturbed"):
        bg.verify(model, x, spec, labels=y)
    images = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).double().eval()
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    kernel = {"0.weight": bg.LinfBall(images[0].weight.detach(), 0.01)}
    with pytest.raises(UnsupportedError):
        bg.verify(images, bg.LinfBall(x, 0.1), spec, labels=[0, 0], parameters=kernel)
