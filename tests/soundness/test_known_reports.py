"""Wrong answers that users reported of other verifiers, each as a test of ours.

Named after the tool and issue. What a report has in common with none of our features (an LP
solver's rounding, tests that were skipped) is left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.compiler import METHODS
from boundgraph.errors import BoundGraphError, SpecError, UnsupportedError
from boundgraph.verification import All, Attack, Constraint, _stages
from boundgraph.verification import Any as AnyOf

CHEAP = ("ibp", "crown-ibp", "crown")
POSITIVE = Constraint([1.0])


class Of(nn.Module):
    """A module of a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _linear(weight: Any, bias: Any) -> nn.Linear:
    weight = torch.tensor(weight)
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.tensor(bias))
    return layer


def _net(seed: int, *sizes: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


class Spike(nn.Module):
    """1, but below 0 in a hidden corner of a residual network: a tent of width 0.02."""

    def __init__(self) -> None:
        super().__init__()
        self.line = _linear([[1.0, 1.0]] * 3, [-0.40, -0.41, -0.42])
        self.tent = _linear([[-200.0, 400.0, -200.0]], [1.0])

    def forward(self, x: Tensor) -> Tensor:
        return self.tent(self.line(x).relu()) + (x - x).sum(1, keepdim=True)


@pytest.mark.parametrize("attack", [None, Attack(steps=2, restarts=1)])
def test_alpha_beta_crown_103_unsat_with_the_attack_off(attack: Attack | None) -> None:
    box = bg.Box(torch.tensor([[-1.0, -1.0]]), torch.tensor([[1.0, 1.0]]))
    assert Spike()(torch.tensor([[0.2, 0.21]])).item() < 0
    verdict = bg.verify(Spike().eval(), box, POSITIVE, attack=attack, certificate=True)
    assert not isinstance(verdict, bg.Proved)


def test_alpha_beta_crown_83_a_swallowed_assertion(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Tensor:
        raise AssertionError("within a bound")

    monkeypatch.setattr(_stages, "_run", fails)
    box = bg.Box(torch.zeros(1, 2), torch.ones(1, 2))
    with pytest.raises(AssertionError, match="within a bound"):
        bg.verify(_net(0, 2, 3, 1), box, Constraint([1.0], 100.0))


@pytest.mark.parametrize("method", METHODS)
def test_auto_lirpa_67_degenerate_boxes(method: str) -> None:
    """Where lower == upper in some coordinates, bounds enclose and never turn to NaN."""
    model = _net(1, 3, 8, 8, 2)
    low = torch.tensor([[0.1, -0.2, 0.3]])
    box = bg.Box(low, low + torch.tensor([[0.0, 0.4, 0.0]]))
    bounds = bg.bound(model.double(), method=method)(bg.Box(box.lower.double(), box.upper.double()))
    assert bool(torch.isfinite(bounds.lower).all() & torch.isfinite(bounds.upper).all())
    for share in (0.25, 0.5, 0.75):
        out = model(box.lower.double() * (1 - share) + box.upper.double() * share)
        assert bool((bounds.lower < out).all() & (out < bounds.upper).all())


@pytest.mark.parametrize("method", CHEAP)
def test_auto_lirpa_63_clamps(method: str) -> None:
    """No NaN from a clamp that is idle, active on one side, or passed entirely."""
    for shift in (0.0, 0.9, 5.0, -5.0):
        model = Of(lambda x, shift=shift: torch.clamp(x * 2.0 + shift, -1.0, 1.0) + x).eval()
        try:
            bounds = bg.bound(model, method=method)(bg.LinfBall(torch.zeros(1, 2), 0.25))
        except UnsupportedError as error:
            pytest.skip(f"refused by name, which is no wrong answer either: {error}")
        assert bool(torch.isfinite(bounds.lower).all() & torch.isfinite(bounds.upper).all())
        assert bool((bounds.lower <= model(torch.zeros(1, 2))).all())


def test_auto_lirpa_31_88_bounds_of_an_earlier_call() -> None:
    model = _net(2, 2, 6, 2)
    function = bg.bound(model, method="crown")
    regions = [
        bg.LinfBall(torch.full((1, 2), c), eps) for c, eps in ((0.0, 1.0), (3.0, 0.1), (0.0, 0.01))
    ]
    for region in (*regions, regions[0]):
        fresh = bg.bound(model, method="crown")(region)
        assert torch.equal(function(region).lower, fresh.lower)
    with torch.no_grad():
        model[0].weight.neg_()
    fresh = bg.bound(model, method="crown")(regions[0])
    assert torch.equal(function(regions[0]).lower, fresh.lower)


def test_alpha_beta_crown_1_low_precision_and_batch_norm() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    region = bg.LinfBall(torch.zeros(1, 2), 0.1)
    with pytest.raises(BoundGraphError, match=r"training|eval"):
        bg.verify(model, region, POSITIVE)
    half = bg.LinfBall(torch.zeros(1, 2, dtype=torch.float16), 0.1)
    with pytest.raises(BoundGraphError):
        bg.verify(model.half().eval(), half, POSITIVE)


def test_nnv_446_nan_is_not_unsat() -> None:
    """inf − inf inside the bound, and in the network itself."""
    huge = nn.Sequential(
        _linear([[3e38], [3e38]], [0.0, 0.0]), nn.ReLU(), _linear([[9.0, -9.0]], [1.0])
    ).eval()
    box = bg.Box(torch.tensor([[0.0]]), torch.tensor([[8.0]]))
    for attack in (None, Attack()):
        verdict = bg.verify(huge, box, POSITIVE, attack=attack, certificate=True)
        assert not isinstance(verdict, bg.Proved)


def test_nnv_319_a_property_about_other_outputs() -> None:
    model, region = _net(3, 2, 4, 3), bg.LinfBall(torch.zeros(1, 2), 0.1)
    for spec in (Constraint({3: 1.0}), Constraint([1.0, 0.0]), bg.LinearSpec(torch.eye(4))):
        with pytest.raises(SpecError):
            bg.verify(model, region, spec)
    with pytest.raises(SpecError):
        bg.verify(model, region, bg.Margin(3), labels=3)


def test_nnv_385_rounding_is_no_certificate() -> None:
    """`relu(x + 1e8) − 1e8 + 1 > 0` is false at x = −3, though float32 arithmetic says 1."""
    model = nn.Sequential(_linear([[1.0]], [1e8]), nn.ReLU(), _linear([[1.0]], [-1e8])).eval()
    region = bg.LinfBall(torch.tensor([[-3.0]]), 0.25)
    assert float(model(torch.tensor([[-3.0]]))) + 1.0 > 0.0
    verdict = bg.verify(model, region, Constraint([1.0], 1.0), certificate=True)
    assert getattr(verdict, "certificate", None) is None
    true = bg.verify(model, region, Constraint([1.0], 32.0), certificate=True)
    assert isinstance(true, bg.Proved) and true.certificate is not None
    # The proof is of the real function, whose least value there is 28.75.
    assert 28.7 < min(true.certificate.check().margins) <= 28.75


def test_neuralsat_20_disjunctions() -> None:
    """A disjunction holds where members take turns, is broken only where all fail."""
    model = _linear([[1.0], [-1.0]], [0.0, 0.0]).eval()
    box = bg.Box(torch.tensor([[-1.0]]), torch.tensor([[1.0]]))
    first, second = Constraint({0: 1.0}, 0.1), Constraint({1: 1.0}, 0.1)
    assert isinstance(bg.verify(model, box, AnyOf(first, second)), bg.Unknown)
    assert isinstance(bg.verify(model, box, All(first, second)), bg.Refuted)
    strict = AnyOf(Constraint({0: 1.0}, -0.5), Constraint({1: 1.0}, -0.5))
    verdict = bg.verify(model, box, strict)
    assert isinstance(verdict, bg.Refuted) and all(v <= 0 for v in verdict.values)
    mixed = AnyOf(All(first, Constraint({0: 1.0}, 2.0)), Constraint({1: 1.0}, 2.0))
    assert isinstance(bg.verify(model, box, mixed, certificate=True), bg.Proved)


def test_marabou_435_the_order_of_neurons() -> None:
    """Integer weights: intervals of permuted networks are equal, to the last bit."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randint(-3, 4, shape, generator=generator).float() for shape in
               ((5, 2), (5,), (1, 5), (1,))]  # fmt: skip
    region = bg.LinfBall(torch.tensor([[1.0, -2.0]]), 0.5)
    found = []
    for order in (torch.arange(5), torch.randperm(5, generator=generator)):
        model = nn.Sequential(
            _linear(weights[0][order].tolist(), weights[1][order].tolist()),
            nn.ReLU(),
            _linear(weights[2][:, order].tolist(), weights[3].tolist()),
        )
        found.append(bg.bound(model, method="ibp")(region))
    assert torch.equal(found[0].lower, found[1].lower)
    assert torch.equal(found[0].upper, found[1].upper)


@pytest.mark.parametrize("seed", range(4))
def test_marabou_606_unsat_against_a_grid(seed: int) -> None:
    """Thresholds just above and below the least value on a fine grid."""
    model = _net(seed, 2, 6, 6, 1)
    line = torch.linspace(-1, 1, 81)
    grid = torch.cartesian_prod(line, line)
    least = float(model(grid).min())
    box = bg.Box(torch.full((1, 2), -1.0), torch.full((1, 2), 1.0))
    for gap in (-1e-3, 0.5):
        verdict = bg.verify(model, box, Constraint([1.0], gap - least), methods=CHEAP)
        # Not above: the grid breaks it. Above by 0.5: it may hold, and nothing may refute it
        # without an input that does.
        if gap < 0:
            assert not isinstance(verdict, bg.Proved)
        if isinstance(verdict, bg.Refuted):
            assert float(model(*verdict.counterexample)) + gap - least <= 0


def test_marabou_670_constant_inputs_and_outputs() -> None:
    """A single point is decided by the model's value there; 0 > 0 is false."""
    model = _net(5, 3, 4, 1)
    x = torch.tensor([[0.3, -0.1, 0.8]])
    value = float(model(x))
    for offset, wanted in ((0.5 - value, bg.Proved), (-0.5 - value, bg.Refuted)):
        assert isinstance(bg.verify(model, bg.Box(x, x), Constraint([1.0], offset)), wanted)
    zero = _linear([[0.0, 0.0]], [0.0]).eval()
    box = bg.Box(torch.zeros(1, 2), torch.ones(1, 2))
    assert isinstance(bg.verify(zero, box, POSITIVE), bg.Refuted)
    one = bg.verify(zero, box, Constraint([1.0], 1.0), certificate=True)
    assert isinstance(one, bg.Proved) and one.certificate is not None


def test_marabou_346_an_exception_is_no_verdict() -> None:
    model = Of(lambda x: torch.special.bessel_j0(x)).eval()
    with pytest.raises(UnsupportedError, match="bessel_j0"):
        bg.verify(model, bg.LinfBall(torch.zeros(1, 2), 0.1), bg.LinearSpec(torch.eye(2)))


def test_marabou_728_two_readers_of_one_model() -> None:
    model, region = _net(6, 3, 5, 2), bg.LinfBall(torch.zeros(1, 3), 0.2)
    traced, exported = (
        bg.bound(model, method="crown", frontend=name)(region)
        for name in ("torch_fx", "torch_export")
    )
    assert torch.equal(traced.lower, exported.lower)
    assert torch.equal(traced.upper, exported.upper)


@pytest.mark.parametrize("method", METHODS)
def test_eran_56_lower_above_upper(method: str) -> None:
    model = nn.Sequential(_net(7, 2, 6, 4), nn.Sigmoid(), nn.Linear(4, 2)).double().eval()
    for eps in (1e-9, 1e-3, 1.0, 100.0):
        bounds = bg.bound(model, method=method)(
            bg.LinfBall(torch.tensor([[0.3, -2.0]]).double(), eps)
        )
        assert bool((bounds.lower < bounds.upper).all())


@pytest.mark.parametrize("method", CHEAP)
def test_neuralverification_144_convolutions(method: str) -> None:
    """Strides, dilation, groups and padding modes, at corners and random points."""
    torch.manual_seed(8)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=2, dilation=2, groups=2, padding_mode="reflect"),
        nn.ReLU(),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double().eval()  # fmt: skip
    box = bg.Box(torch.full((1, 2, 6, 6), -0.2).double(), torch.full((1, 2, 6, 6), 0.3).double())
    bounds = bg.bound(model, method=method)(box)
    points = torch.rand(200, 2, 6, 6).double()
    points[:100] = points[:100].round()
    out = model(box.lower + (box.upper - box.lower) * points)
    assert bool((bounds.lower < out).all() & (out < bounds.upper).all())


def test_vnncomp_2023_4_counterexamples_lie_inside() -> None:
    """Every element within the ends in exact arithmetic, though 0.1 is no float32."""
    model = _linear([[1.0, -1.0, 1.0]], [0.0]).eval()
    x = torch.tensor([[0.05, 0.3, 0.95]])
    verdict = bg.verify(
        model, bg.LinfBall(x, 0.1, (0.0, 1.0)), Constraint([1.0], -1.0), labels=None
    )
    assert isinstance(verdict, bg.Refuted)
    (found,) = verdict.counterexample
    assert bool(((found.double() - x.double()).abs() <= 0.1).all())
    assert bool(((found >= 0) & (found <= 1)).all())
    assert float(model(found)) - 1.0 <= 0


def test_symbolic_interval_boxes_depend_on_no_other_sample() -> None:
    x = torch.stack([torch.linspace(0, 1, 4), torch.linspace(-7, 3, 4)])
    both = bg.LinfBall(x, 0.3)
    for i in range(2):
        alone = bg.LinfBall(x[i : i + 1], 0.3)
        assert torch.equal(both.lower[i : i + 1], alone.lower)
        assert torch.equal(both.upper[i : i + 1], alone.upper)


@pytest.mark.parametrize("method", METHODS)
def test_symbolic_interval_units_whose_lower_end_is_zero(method: str) -> None:
    """`relu` on [0, 2] is the identity, not 0."""
    model = nn.Sequential(_linear([[1.0]], [1.0]), nn.ReLU(), _linear([[1.0]], [0.0]))
    bounds = bg.bound(model, method=method)(bg.Box(torch.tensor([[-1.0]]), torch.tensor([[1.0]])))
    assert (float(bounds.lower), float(bounds.upper)) == (0.0, 2.0)


def test_weights_that_are_not_finite_are_refused() -> None:
    for bad in (math.nan, math.inf):
        model = _linear([[bad, 1.0]], [0.0]).eval()
        with pytest.raises(BoundGraphError, match="NaN or infinity"):
            bg.verify(model, bg.LinfBall(torch.zeros(1, 2), 0.1), POSITIVE)
