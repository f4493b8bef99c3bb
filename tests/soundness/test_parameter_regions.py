"""Regions of parameters: bounds hold for all weights and inputs in them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import boundgraph as bg
from boundgraph.domains import Interval
from boundgraph.errors import RegionError, UnsupportedError
from boundgraph.testing import excess, model_allowance, sample_point

METHODS = ("ibp", "symbolic", "mix", "crown-ibp", "crown", "auto")
Regions = dict[str, bg.Box | bg.LinfBall]


class Shared(nn.Module):
    """One layer twice, a factor, a term, and a product with a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(4, 5), nn.Linear(5, 5)
        self.scale, self.shift = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(1, 5))
        self.matrix = nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.again(x)) * self.scale
        return (torch.tanh(self.again(x)) - self.shift) @ self.matrix


def network(name: str) -> tuple[nn.Module, Tensor, tuple[str, ...]]:
    """A model, an input, and the parameters that get a region."""
    torch.manual_seed(5)
    made: dict[str, tuple[nn.Module, Tensor, tuple[str, ...]]] = {
        "mlp": (
            nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)),
            torch.randn(2, 4),
            ("0.weight", "0.bias", "2.weight"),
        ),
        "bias": (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)),
            torch.randn(2, 1, 6, 6),
            ("0.bias", "3.bias"),
        ),
        "shared": (
            Shared(),
            torch.randn(2, 4),
            ("again.weight", "scale", "shift", "matrix", "first.bias"),
        ),
        "tokens": (
            nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 2)),
            torch.randn(2, 3, 4),
            ("0.weight", "2.weight", "2.bias"),
        ),
    }
    model, x, names = made[name]
    return model.double().eval(), x.double(), names


def regions_of(model: nn.Module, names: tuple[str, ...], eps: float) -> Regions:
    parameters = dict(model.named_parameters())
    return {name: bg.LinfBall(parameters[name].detach(), eps) for name in names}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["mlp", "bias", "shared", "tokens"])
def test_bounds_hold_for_all_weights(name: str, method: str) -> None:
    model, x, names = network(name)
    box, weights = bg.LinfBall(x, 0.1), regions_of(model, names, 0.05)
    program = bg.compile(model, box, method=method, parameters=weights)
    with torch.no_grad():
        found = program(box, parameters=weights)
        (moved,) = model_allowance(model, box)
    bounds = Interval(found.lower, found.upper)
    generator = torch.Generator().manual_seed(0)
    lowest = torch.full_like(found.lower, torch.inf)
    for index in range(60):
        corner = index % 2 == 1
        drawn = {
            key: sample_point(region.interval(), generator, corner=corner)
            for key, region in weights.items()
        }
        point = sample_point(box.interval(), generator, corner=corner)
        with torch.no_grad():
            value = functional_call(model, drawn, (point,))
        assert not (excess(value, bounds, 64.0 * moved) > 0).any()
        lowest = torch.minimum(lowest, value)
    assert (found.lower <= lowest).all()


def test_one_layer_exactly() -> None:
    """Inputs and weights that are not negative: the ends are at the ends of all factors."""
    model = nn.Linear(3, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [0.5, 1.0, 4.0]]))
        model.bias.copy_(torch.tensor([0.25, -1.0]))
    x = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)
    box, ball = bg.LinfBall(x, 0.25), bg.LinfBall(model.weight.detach(), 0.125)
    for method in METHODS[:1]:
        program = bg.compile(model, box, method=method, parameters={"weight": ball})
        found = program(box, parameters={"weight": ball})
        low = F.linear(x - 0.25, model.weight - 0.125, model.bias)
        high = F.linear(x + 0.25, model.weight + 0.125, model.bias)
        assert torch.allclose(found.lower, low, rtol=0, atol=1e-14)
        assert torch.allclose(found.upper, high, rtol=0, atol=1e-14)


def test_weights_alone_and_regions_without_width() -> None:
    """With a fixed input the first layer is affine in its weights, and backward bounds exact."""
    model, x, _ = network("mlp")
    weights = regions_of(model, ("0.weight",), 0.1)
    found = bg.compile(model[0], x, method="crown", parameters={"weight": weights["0.weight"]})(
        x, parameters={"weight": weights["0.weight"]}
    )
    reach = 0.1 * x.abs().sum(1, keepdim=True)
    with torch.no_grad():
        value = model[0](x)
    assert torch.allclose(found.lower, value - reach) and torch.allclose(found.upper, value + reach)
    none = regions_of(model, ("0.weight", "2.weight"), 0.0)
    for method in METHODS:
        program = bg.compile(model, bg.LinfBall(x, 0.0), method=method, parameters=none)
        exact = program(bg.LinfBall(x, 0.0), parameters=none)
        assert torch.allclose(exact.lower, model(x)) and torch.allclose(exact.upper, model(x))


def test_samples_are_kept_apart() -> None:
    model, x, names = network("shared")
    weights = regions_of(model, names, 0.05)
    for method in METHODS:
        program = bg.compile(model, bg.LinfBall(x, 0.1), method=method, parameters=weights)
        whole = program(bg.LinfBall(x, 0.1), parameters=weights)
        alone = program(bg.LinfBall(x[:1], 0.1), parameters=weights)
        assert torch.allclose(whole.lower[:1], alone.lower)


def test_tied_parameters_are_one_region() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).double()
    model[1].weight = model[0].weight
    box = bg.LinfBall(torch.ones(1, 3, dtype=torch.float64), 0.0)
    weights: Regions = {"1.weight": bg.LinfBall(model[0].weight.detach(), 0.3)}
    program = bg.compile(model, box, parameters=weights)
    assert len(program.ir.inputs) == 2
    found = program(box, parameters=weights)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        weight = sample_point(weights["1.weight"].interval(), generator, corner=True)
        value = box.center @ weight.T @ weight.T
        assert (found.lower <= value + 1e-12).all() and (value <= found.upper + 1e-12).all()


def test_margins_functions_and_files(tmp_path) -> None:
    model, x, names = network("mlp")
    box, weights = bg.LinfBall(x, 0.1), regions_of(model, names, 0.05)
    labels = torch.tensor([0, 2])
    program = bg.compile(model, box, method="crown", spec=bg.Margin(3), parameters=weights)
    found = program(box, labels=labels, parameters=weights)
    by_function = bg.bound(model, method="crown", spec=bg.Margin(3))
    again = by_function(box, labels=labels, parameters=weights)
    assert torch.equal(found.lower, again.lower)
    wide = by_function(box, labels=labels, parameters=regions_of(model, names, 0.1))
    assert (wide.lower <= found.lower).all() and (wide.lower < found.lower).any()
    program.save(tmp_path / "net.bgp")
    loaded = bg.load(tmp_path / "net.bgp")
    assert torch.equal(loaded(box, labels=labels, parameters=weights).lower, found.lower)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, torch.tanh(self.weight))


def test_what_cannot_be_a_region_is_refused() -> None:
    conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    image = bg.LinfBall(torch.zeros(1, 1, 5, 5), 0.1)
    with pytest.raises(UnsupportedError, match=r"`conv2d` cannot read @0\.weight"):
        bg.compile(conv, image, parameters=regions_of(conv, ("0.weight",), 0.1))
    model, box = nn.Linear(3, 2), bg.LinfBall(torch.zeros(1, 3), 0.1)
    weights = regions_of(model, ("weight",), 0.1)
    with pytest.raises(UnsupportedError, match="cannot read @weight"):
        bg.compile(Scaled(), box, parameters=weights)
    for bad, text in (
        ({"wait": weights["weight"]}, "no parameter 'wait'; it has weight, bias"),
        ({"weight": bg.LinfBall(torch.zeros(3, 3), 0.1)}, "has shape"),
        ({"weight": bg.L2Ball(torch.zeros(2, 3), 0.1)}, "must be a Box or LinfBall"),
    ):
        with pytest.raises(RegionError, match=text):
            bg.compile(model, box, parameters=bad)
    program = bg.compile(model, box, parameters=weights)
    with pytest.raises(RegionError, match="parameters= has none"):
        program(box)
    with pytest.raises(RegionError, match="without regions of parameters"):
        bg.compile(model, box)(box, parameters=weights)

    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 3))
            self.register_buffer("old", self.weight.detach())

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight) + F.linear(x, self.old)

    with pytest.raises(RegionError, match="another view"):
        bg.compile(Aliased(), box, parameters=weights)
