"""What forms rely on: where the centre of an interval comes from, and sums taken in blocks."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from exact_bounds import misses

import boundgraph as bg
from boundgraph.domains.interval import Interval
from boundgraph.domains.rounding import PRECISIONS, Outward
from boundgraph.domains.sound_form import SoundForm
from boundgraph.errors import ConfigError
from boundgraph.ops import Kind, _spec
from boundgraph.ops._sound import Centre, interval_rule, offset_of, why_not
from boundgraph.ops._sound_backward import _Step
from boundgraph.ops._sound_terms import _PRODUCTS
from boundgraph.testing import draw_case

P = PRECISIONS["f32"]
DIRECT = [
    spec.name
    for spec in _spec.all_ops()
    if spec.sample is not None
    and why_not(spec) is None
    and (spec.centred or (spec.kind is Kind.STRUCTURAL and spec.boundable == (0,)))
]


def terms_of(spec: _spec.OpSpec, case: Any) -> int:
    parts = [v.any_part if isinstance(v, Interval) else v for v in case.operands]
    count = spec.rounding.terms(*parts, **case.attrs) if spec.rounding.terms is not None else 0
    return int(-(-(count + spec.rounding.ulps) // 1))


@pytest.mark.parametrize("name", DIRECT)
def test_a_direct_centre_is_the_op_at_the_operands_centre(name: str) -> None:
    """Bit for bit: a backward step charges the rounding of that and computes no difference."""
    spec = _spec.get(name)
    assert spec is not None
    rule = interval_rule(spec)
    assert rule is not None
    for index in range(6):
        case = draw_case(spec, random.Random(f"{name}/{index}"), torch.float32)
        first, *rest = case.operands
        ends = Outward(first.lower, first.upper, P)
        for box in (ends, Outward.ball(ends.center, ends.radius, P)):
            options = {"terms": terms_of(spec, case), "precision": "f32"}
            found = rule(box, *rest, **options, **case.attrs)
            assert torch.equal(found.center, spec.concrete(box.center, *rest, **case.attrs))
            if spec.name in _PRODUCTS:
                wide = rule(box, *rest, **options, wide=True, **case.attrs)
                values = [v.double() for v in (box.center, *rest)]
                near = spec.concrete(*values, **case.attrs).float()
                assert torch.equal(wide.center, near)
                assert bool((wide.radius <= found.radius).all())


@pytest.mark.parametrize(
    "shape", [("linear", (3, 96), (5, 96), {}), ("conv2d", (2, 8, 5, 5), (6, 8, 4, 4), {})]
)
def test_sums_in_blocks_err_as_counted(shape: Any) -> None:
    name, of_x, of_weight, attrs = shape
    spec = _spec.get(name)
    assert spec is not None and spec.blocks is not None and spec.magnitude is not None
    if name == "conv2d":
        attrs = {"stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    generator = torch.Generator().manual_seed(0)
    for parts in (1, 2, 4, 8):
        x = torch.randn(of_x, generator=generator) * 1e3
        weight = torch.randn(of_weight, generator=generator)
        bias = torch.randn(of_weight[0], generator=generator)
        assert spec.rounding.terms is not None
        full = spec.rounding.terms(x, weight, bias, **attrs)
        own = full // parts + parts + 1
        rest = (weight, bias)
        found = Centre(own, full, parts).run(spec, (x, *rest), attrs).double()
        exact = spec.concrete(*(v.double() for v in (x, *rest)), **attrs)
        wide = [v.double() for v in (x.abs(), *rest)]
        size = spec.magnitude(*wide, **attrs) + offset_of(spec, wide[0], wide[1:], attrs)
        assert bool(((found - exact).abs() <= size * P.gamma(own)).all())


def wide_network() -> tuple[torch.nn.Module, bg.Box]:
    """Sums long enough for blocks, large values and a small region."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(48, 64), torch.nn.ReLU(), torch.nn.Linear(64, 36), torch.nn.ReLU(),
        torch.nn.Linear(36, 3),
    )  # fmt: skip
    center = torch.randn(1, 48) * 30
    return model.eval(), bg.Box(center, center + 1e-6)


def steep_network() -> tuple[torch.nn.Module, bg.Box]:
    """The rounding of the first layer, through an outer layer of large entries, at one point."""
    torch.manual_seed(6)
    model = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Linear(12, 3))
    with torch.no_grad():
        model[1].weight.mul_(1e4)
    center = torch.randn(1, 8)
    return model.eval(), bg.Box(center, center)


def tightened_network() -> tuple[torch.nn.Module, bg.Box]:
    """Intermediate bounds that `crown` tightens, so that their centres move."""
    torch.manual_seed(4)
    model = torch.nn.Sequential(
        torch.nn.Linear(1, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.ReLU(),
        torch.nn.Linear(8, 24),
    )  # fmt: skip
    return model.eval(), bg.Box(torch.full((1, 1), -0.5), torch.full((1, 1), 1.0))


def test_blocks_contain_the_exact_value() -> None:
    model, box = wide_network()
    assert "parts=8" in str(bg.compile(model, box, rounding="sound").ir)
    assert "wide=True" in str(bg.compile(model, box, method="crown", rounding="sound").ir)
    compared, missed = misses(model, [box], random.Random(0), rounding="sound")
    assert compared > 30
    assert not any(missed.values()), missed


def _no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rounding of centres and of coefficients is not charged."""
    whole = _Step.weight
    monkeypatch.setattr(_Step, "weight", lambda self, carry: whole(self, carry) * 0.0)


def _no_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Centres that were not computed from each other are taken for equal."""
    monkeypatch.setattr(_Step, "residual", lambda self: self.result.center * 0.0)


def _no_lines_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a relaxed op the offset stays where it was."""
    walk = SoundForm.through_outward

    def through(self: SoundForm, *args: Any) -> SoundForm:
        found = walk(self, *args)
        return SoundForm(found.coeff, self.offset, self.error, self.precision)

    monkeypatch.setattr(SoundForm, "through_outward", through)


@pytest.mark.parametrize("plant", [_no_weight, _no_residual, _no_lines_offset])
def test_planted_faults_are_found(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, box = wide_network()
    if plant is _no_weight:
        model, box = steep_network()
    if plant is _no_residual:
        model, box = tightened_network()
    if plant is _no_lines_offset:
        box = bg.Box(box.lower - 3.0, box.upper + 3.0)
    plant(monkeypatch)
    missed = misses(model, [box], random.Random(0), points=8, rounding="sound")[1]
    assert missed["crown" if plant is _no_residual else "crown-ibp"] > 0


def test_sound_linear_forms_are_not_handed_out() -> None:
    with pytest.raises(ConfigError, match="not linear ones"):
        bg.linear_bounds(wide_network()[0], rounding="sound")
