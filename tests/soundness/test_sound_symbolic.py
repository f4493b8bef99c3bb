"""Rounding-sound symbolic bounds: tight beside those to nearest, and planted faults are found."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from exact_bounds import misses
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.domains.sound_symbolic import SoundSymbolic
from boundgraph.ops import _sound_symbolic
from boundgraph.ops._sound import Centre


class Branches(nn.Module):
    """Joins, sums, products with constants, and ops that symbols do not walk through."""

    def __init__(self, product: bool) -> None:
        super().__init__()
        self.product = product
        self.first, self.second = nn.Linear(5, 6), nn.Linear(12, 4)
        self.register_buffer("scale", torch.linspace(-2.0, 3.0, 6))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        both = torch.cat([h * self.scale, self.scale + (h * h if self.product else h)], 1)
        return torch.relu(self.second(both) + 1.0) / torch.tensor([3.0, 7.0, 11.0, 13.0])


def branches(product: bool = True) -> tuple[nn.Module, bg.Box]:
    torch.manual_seed(0)
    center = torch.randn(2, 5)
    return Branches(product).eval(), bg.Box(center - 0.05, center + 0.05)


def cancelling(width: int) -> tuple[nn.Module, bg.Box]:
    """Large terms that nearly cancel in the first layer, then large entries; at one point."""
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(2 * width, 6), nn.Linear(6, 3))
    half = torch.randn(6, width)
    with torch.no_grad():
        model[0].weight.copy_(torch.cat([half, -half], 1))
        model[0].bias.zero_()
        model[1].weight.mul_(1e4)
    center = torch.randn(1, width)
    center = torch.cat([center, center * (1.0 + 1e-3)], 1)
    return model.eval(), bg.Box(center, center)


@pytest.mark.parametrize("method", ["symbolic", "mix"])
def test_little_wider_than_to_nearest(method: str) -> None:
    # A product of two bounded values starts anew where rounding counts.
    model, box = branches(product=False)
    plain = bg.compile(model, box, method=method)(box)
    sound = bg.compile(model, box, method=method, rounding="sound")(box)
    # tanh has other lines there: through its ends, and not the closest ones.
    assert float(sound.width.sum().detach()) < 1.1 * float(plain.width.sum().detach())


def test_mix_is_never_looser_than_ibp() -> None:
    model, box = branches()
    mix = bg.compile(model, box, method="mix", rounding="sound")(box)
    ibp = bg.compile(model, box, method="ibp", rounding="sound")(box)
    room = 1e-4 * ibp.width
    assert bool((ibp.lower - room <= mix.lower).all() & (mix.upper <= ibp.upper + room).all())


def test_contains_the_exact_value() -> None:
    model, box = branches()
    methods = ("symbolic", "mix")
    compared, missed = misses(model, [box], random.Random(0), methods=methods, rounding="sound")
    assert compared
    assert not any(missed.values()), missed


def wide_layers() -> tuple[nn.Module, bg.Box]:
    """Sums long enough to be taken in turns."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 4)
    ).eval()
    center = torch.rand(2, 12)
    return model, bg.Box(center - 1 / 255, center + 1 / 255)


@pytest.mark.parametrize("method", ["symbolic", "mix"])
def test_long_sums_in_turns_are_narrow_and_contain_the_exact_value(method: str) -> None:
    model, box = wide_layers()
    program = bg.compile(model, box, method=method, rounding="sound", spec=bg.Margin(4))
    assert "parts=" in str(program.ir)
    options: dict[str, Any] = {"methods": (method,), "points": 2, "rounding": "sound"}
    assert misses(model, [box], random.Random(0), **options)[1][method] == 0
    labels = torch.zeros(2, dtype=torch.long)
    found = program(box, labels=labels)
    model, box = model.double(), bg.Box(box.lower.double(), box.upper.double())
    ideal = bg.bound(model, method=method, spec=bg.Margin(4))(box, labels=labels)
    assert float(found.width.mean().detach()) < 1.001 * float(ideal.width.mean().detach())


def _no_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _sound_symbolic._error
    monkeypatch.setattr(_sound_symbolic, "_error", lambda *args: whole(*args) * 0.0)


def _not_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Centres are taken for sums in float64 and are not."""
    monkeypatch.setattr(Centre, "run", lambda self, spec, parts, attrs: spec.concrete(*parts))


def _errors_stay_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """An affine op charges its own rounding and forgets the errors of its operand."""
    whole = _sound_symbolic._error

    def own(spec: Any, operands: Any, *rest: Any) -> Tensor:
        bare = [
            SoundSymbolic(v.center, v.blocks, None, v.precision)
            if isinstance(v, SoundSymbolic)
            else v
            for v in operands
        ]
        return whole(spec, bare, *rest)

    monkeypatch.setattr(_sound_symbolic, "_error", own)


def _only_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _sound_symbolic._in_turns

    def first(spec: Any, operands: Any, parts: int, attrs: Any) -> dict[str, Tensor]:
        return {name: g / parts for name, g in whole(spec, operands, parts, attrs).items()}

    monkeypatch.setattr(_sound_symbolic, "_in_turns", first)


def _no_symbols(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SoundSymbolic, "reach", lambda self, symbols: None)


FAULTS: dict[str, tuple[Any, Any]] = {
    "rounding of an affine op is forgotten": (_no_rounding, lambda: cancelling(2)),
    "float64 is claimed and not used": (_not_in_float64, lambda: cancelling(8)),
    "errors of an operand are forgotten": (_errors_stay_behind, lambda: cancelling(2)),
    "only one turn is taken": (_only_one_turn, wide_layers),
    "generators count for nothing": (_no_symbols, branches),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, made = FAULTS[fault]
    model, box = made()
    options: dict[str, Any] = {"methods": ("symbolic",), "points": 8, "rounding": "sound"}
    assert misses(model, [box], random.Random(0), **options)[1]["symbolic"] == 0
    plant(monkeypatch)
    assert misses(model, [box], random.Random(0), **options)[1]["symbolic"] > 0
