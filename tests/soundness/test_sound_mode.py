"""What rounding='sound' promises around the bounds: refusals, regions, saving, verdicts."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import boundgraph as bg
from boundgraph import evaluation
from boundgraph.domains.enclosure import enclosure
from boundgraph.errors import ConfigError, RegionError, SpecError, UnsupportedError
from boundgraph.ops import _spec
from boundgraph.ops._sound import interval_rule, why_not
from boundgraph.ops._spec import UNDECLARED
from boundgraph.verification import _stages


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def ball(eps: float = 0.01) -> bg.LinfBall:
    return bg.LinfBall(torch.full((1, 4), 0.3), eps)


def test_corners_are_rounded_outward() -> None:
    rng = random.Random(0)
    for dtype in (torch.float32, torch.float64):
        for _ in range(200):
            center = torch.tensor([rng.uniform(-2, 2) * 10.0 ** rng.randint(-8, 8)], dtype=dtype)
            eps = rng.choice((0.1, 1 / 255, 0.3, 1e-9, rng.random()))
            found = enclosure(bg.LinfBall(center, eps))
            exact, radius = Fraction(center.item()), Fraction(eps)
            assert Fraction(found.lower.item()) <= exact - radius
            assert Fraction(found.upper.item()) >= exact + radius


def test_corners_stay_in_the_clip_and_on_a_point() -> None:
    center = torch.tensor([0.0, 0.5, 1.0])
    found = enclosure(bg.LinfBall(center, 0.1, clip=(0.0, 1.0)))
    assert found.lower[0] == 0.0
    assert found.upper[2] == 1.0
    point = enclosure(bg.LinfBall(center, 0.0))
    assert torch.equal(point.lower, center)
    assert torch.equal(point.upper, center)


def test_a_clip_that_the_dtype_cannot_hold_is_rounded_outward() -> None:
    found = enclosure(bg.LinfBall(torch.tensor([0.5]), 1.0, clip=(0.1, 0.9)))
    assert Fraction(found.lower.item()) <= Fraction(0.1)
    assert Fraction(found.upper.item()) >= Fraction(0.9)


def test_subnormal_numbers_flushed_to_zero_are_refused() -> None:
    program = bg.compile(network(), ball(), rounding="sound")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        with pytest.raises(ConfigError, match="flushed to zero"):
            program(ball())
    finally:
        torch.set_flush_denormal(False)
    program(ball())


def test_reduced_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    program = bg.compile(network(), ball(), rounding="sound")
    with torch.autocast("cpu"), pytest.raises(ConfigError, match="autocast"):
        program(ball())
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
    try:
        with pytest.raises(ConfigError, match="bf16"):
            program(ball())
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"  # type: ignore[attr-defined]


def test_a_program_is_not_run_in_another_dtype() -> None:
    model = network()
    program = bg.compile(model, ball(), rounding="sound")
    model.double()
    with pytest.raises(ConfigError, match="compiled as f32"):
        program(ball())


def test_transforming_convolutions_are_off_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    run = bg.BoundProgram.run

    def spy(self: bg.BoundProgram, *args: object, **options: object) -> object:
        seen.append(torch._C._get_nnpack_enabled())
        return run(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(bg.BoundProgram, "run", spy)
    bg.compile(network(), ball(), rounding="sound")(ball())
    assert seen == [False]
    assert torch._C._get_nnpack_enabled()


def test_an_op_that_declares_nothing_has_no_sound_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    spec = _spec.get("sigmoid")
    assert spec is not None
    assert interval_rule(spec) is not None
    silent = replace(spec, rounding=UNDECLARED)
    assert why_not(silent) == "it declares no rounding"
    monkeypatch.setitem(_spec._OPS, "sigmoid", silent)
    model = nn.Sequential(nn.Linear(4, 2), nn.Sigmoid()).eval()
    for method in ("ibp", "crown"):
        with pytest.raises(UnsupportedError, match="`sigmoid` has no rounding-sound rule"):
            bg.compile(model, ball(), method=method, rounding="sound")


class RoundedConstant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.weight * 0.1) + self.weight.exp()


def test_constants_computed_in_the_model_carry_their_rounding() -> None:
    torch.manual_seed(1)
    model = RoundedConstant().eval()
    program = bg.compile(model, ball(0.0), rounding="sound")
    bounds = program(ball(0.0))
    assert "interval.point" in str(program.ir)
    exact = model.double()(torch.full((1, 4), 0.3).double())
    assert bool(((bounds.lower.double() < exact) & (exact < bounds.upper.double())).all())


def test_overflow_gives_an_infinite_end() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(3e38)
    region = bg.LinfBall(torch.tensor([[4.0, -4.0]]), 0.5)
    for method in ("ibp", "crown-ibp"):
        bounds = bg.compile(model, region, method=method, rounding="sound")(region)
        assert bounds.lower.item() == -torch.inf
        assert bounds.upper.item() == torch.inf


def test_a_saved_program_stays_sound(tmp_path: Path) -> None:
    program = bg.compile(network(), ball(), method="crown", rounding="sound")
    program.save(tmp_path / "net.bgp")
    again = bg.load(tmp_path / "net.bgp")
    assert again.info.rounding == "sound"
    assert torch.equal(again(ball()).lower, program(ball()).lower)


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="rounding must be"):
        bg.bound(network(), rounding="up")
    with pytest.raises(ConfigError, match="needs rounding='sound'"):
        bg.compile(network(), ball(), target="executed")
    third = bg.LinearSpec(torch.full((1, 3), 1 / 3, dtype=torch.float64))
    with pytest.raises(SpecError, match="cannot hold"):
        bg.compile(network(), ball(), spec=third, rounding="sound")
    with pytest.raises(RegionError, match="no rounding-sound corners"):
        enclosure(object())


def test_verify_and_evaluate_take_it() -> None:
    model = network()
    label = int(model(torch.full((1, 4), 0.3)).argmax())
    verdict = bg.verify(model, ball(), bg.Margin(3), labels=label, rounding="sound")
    assert not isinstance(verdict, list)
    assert verdict.name == "proved"
    x = torch.rand(6, 4)
    y = model(x).argmax(1)
    plain = bg.evaluate(model, (x, y), 0.01, attack_steps=2)
    sound = bg.evaluate(model, (x, y), 0.01, attack_steps=2, rounding="sound")
    assert sound.certified_correct <= plain.certified_correct
    assert sound.certified_correct > 0


def test_a_margin_within_rounding_is_not_proved() -> None:
    """Two logits that are equal as real numbers but not as computed ones."""

    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            # (x + 3e7) − 3e7 drops what lies below a unit in the last place.
            return torch.stack([x[:, 0] + 3e7 - 3e7, x[:, 0]], 1)

    region = bg.Box(torch.tensor([[1.25]]), torch.tensor([[1.25]]))
    program = bg.compile(Shifted().eval(), region, spec=bg.Margin(2))
    claimed = program(region, labels=torch.tensor([0])).lower[0, 1]
    sound = bg.compile(Shifted().eval(), region, spec=bg.Margin(2), rounding="sound")
    found = sound(region, labels=torch.tensor([0])).lower[0, 1]
    assert claimed > 0 or program(region, labels=torch.tensor([1])).lower[0, 0] > 0
    assert found <= 0


def test_sums_in_float64_are_narrower_and_contain_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 20), nn.ReLU(),
        nn.Linear(20, 3),
    ).eval()  # fmt: skip
    region = bg.LinfBall(torch.rand(2, 2, 6, 6), 1e-3)
    plain = bg.compile(model, region, rounding="sound")(region).width.sum()
    wide = bg.compile(model, region, rounding="sound", accumulate="float64")(region).width.sum()
    ideal = bg.LinfBall(region.center.double(), 1e-3)
    exact = bg.compile(model.double(), ideal, rounding="sound")(ideal).width.sum()
    assert float(exact) < float(wide) < float(exact) + 0.25 * (float(plain) - float(exact))
    for options in ({}, {"rounding": "sound", "method": "crown"}, {"target": "executed"}):
        with pytest.raises(ConfigError):
            bg.compile(model, ideal, accumulate="float64", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("accumulate", ["float64", "dtype"])
def test_verdicts_sum_centres_in_float64(accumulate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    programs: list[Any] = []

    def recording(*args: Any, **options: Any) -> Any:
        programs.append(bg.compile(*args, **options))
        return programs[-1]

    monkeypatch.setattr(evaluation, "compile", recording)
    monkeypatch.setattr(_stages, "compile", recording)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    x = torch.rand(2, 40)
    labels = model(x).argmax(1)
    options: dict[str, Any] = {} if accumulate == "float64" else {"accumulate": accumulate}
    bg.evaluate(model, (x, labels), 1e-4, method=("ibp", "crown-ibp"), rounding="sound", **options)
    region = bg.LinfBall(x[:1], 1e-4)
    bg.verify(model, region, bg.Margin(3), labels=labels[:1], rounding="sound", **options)
    found = [("wide=True" in str(p.ir)) for p in programs if p.method == "ibp"]
    assert found == [accumulate == "float64"] * 2
    with pytest.raises(ConfigError, match="accumulate"):
        bg.evaluate(model, (x, labels), 1e-4, rounding="sound", accumulate="float16")


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_is_part_of_an_executed_network(mode: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConstantPad2d(1, 0.1), nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode), nn.Flatten()
    ).eval()
    x = torch.rand(1, 2, 4, 4)
    region = bg.LinfBall(x, 0.0)
    found = bg.bound(model, rounding="sound", target="executed")(region)
    with torch.no_grad():
        value = model(x)
    assert bool(((found.lower <= value) & (value <= found.upper)).all())
