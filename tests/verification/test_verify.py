"""Every verdict, and that none claims more than it may."""

from __future__ import annotations

import importlib
import time
from typing import Any as Anything

import pytest
import torch
from torch import Tensor, nn

from boundgraph.domains.interval import Interval
from boundgraph.domains.regions import Box, LinfBall
from boundgraph.domains.specs import LinearSpec, Margin
from boundgraph.errors import (
    ConfigError,
    NonFiniteError,
    RegionError,
    SoundnessError,
    SpecError,
    UnsupportedError,
)
from boundgraph.runtime.module import BoundProgram
from boundgraph.verification import (
    All,
    Any,
    Attack,
    Constraint,
    Proved,
    Refuted,
    Unknown,
    _stages,
    verify,
)
from boundgraph.verification.falsify import attacked_box

QUICK = ("ibp", "crown-ibp", "crown")


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1.0


def plant(monkeypatch: pytest.MonkeyPatch, change: Anything) -> list[str]:
    """Let every bound program return `change(lower)`; the methods that ran."""
    run, ran = BoundProgram.run_within, []

    def planted(self: BoundProgram, *args: Anything, **kwargs: Anything) -> Interval:
        ran.append(self.method)
        found = run(self, *args, **kwargs)
        lower = change(found.lower, self.method)
        return Interval(lower, torch.maximum(found.upper, lower))

    monkeypatch.setattr(BoundProgram, "run_within", planted)
    return ran


def assert_broken(model: nn.Module, verdict: Anything, region: LinfBall | Box) -> None:
    """The counterexample is real, by the user's own model and exact arithmetic."""
    assert isinstance(verdict, Refuted) and not verdict
    (x,) = verdict.counterexample
    assert ((x >= region.lower) & (x <= region.upper)).all()
    if isinstance(region, LinfBall):
        assert (x.double() - region.center.double()).abs().max() <= region.eps
    output = model(x)
    assert torch.equal(output, verdict.output)
    assert not verdict.clauses.worst(verdict.clauses.rows(output))[1] > 0
    assert all(not value > 0 for value in verdict.values)


def test_a_batch_gives_one_verdict_per_sample_and_each_is_right() -> None:
    model, x = network(), torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    for eps in (0.02, 0.5):
        region = LinfBall(x, eps)
        verdicts = verify(model, region, Margin(3), labels=y, methods=QUICK)
        assert isinstance(verdicts, list) and len(verdicts) == 4
        points = (x[:, None] + eps * (2 * torch.rand(4, 2000, 3) - 1)).flatten(0, 1)
        kept = (model(points).argmax(1).view(4, -1) == y[:, None]).all(1)
        for i, verdict in enumerate(verdicts):
            if isinstance(verdict, Proved):
                assert verdict and kept[i] and verdict.margin > 0 and verdict.method
            elif isinstance(verdict, Refuted):
                assert_broken(model, verdict, LinfBall(x[i : i + 1], eps))
    assert any(isinstance(v, Refuted) for v in verdicts)


def test_a_batch_of_one_gives_a_verdict_and_later_methods_see_open_rows_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, int]] = []
    stage = _stages.run_stage

    def spy(stages: Anything, method: str, clauses: Anything, rows: Anything, *rest: Anything):  # type: ignore[no-untyped-def]
        asked.append((method, len(rows)))
        return stage(stages, method, clauses, rows, *rest)

    # The package's attribute of this name is the function.
    module = importlib.import_module("boundgraph.verification.verify")
    monkeypatch.setattr(module, "run_stage", spy)
    model = Identity()
    region = Box(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[1.0, 1.0, 2.0]]))
    spec = All(Constraint({0: 1.0}, 0.1), Constraint({0: 1.0, 1: 1.0}, 0.1))
    assert isinstance(verify(model, region, spec), Proved)
    plant(monkeypatch, lambda low, m: low - torch.tensor([0, 1.0]) if m == "ibp" else low)
    asked.clear()
    verdict = verify(model, region, spec)
    assert isinstance(verdict, Proved) and verdict.method == "ibp+crown-ibp"
    assert asked == [("ibp", 2), ("crown-ibp", 1)]


def test_a_tie_refutes_as_the_inequality_is_strict() -> None:
    region = Box(torch.zeros(1, 2), torch.ones(1, 2))
    assert_broken(Identity(), verify(Identity(), region, Constraint({0: 1.0})), region)
    assert isinstance(verify(Identity(), region, Constraint({0: 1.0}, 1e-3)), Proved)


def test_counterexamples_lie_exactly_in_the_ball() -> None:
    torch.manual_seed(0)
    center = torch.rand(1, 1000)
    ball = LinfBall(center, 0.1, (0.0, 1.0))
    box = attacked_box(ball)
    assert isinstance(box, Interval)
    assert (center.double() - box.lower.double()).max() <= 0.1
    assert (box.upper.double() - center.double()).max() <= 0.1
    assert (ball.lower < box.lower).any()
    assert (box.lower >= 0).all() and (box.upper <= 1).all()
    assert (box.lower <= center).all() and (center <= box.upper).all()


def test_a_disjunction_whose_members_take_turns_is_never_proved() -> None:
    """|x| > -1e-3 as `x > -t or x < t`: true everywhere, but by no single member."""
    region = Box(-torch.ones(1, 2), torch.ones(1, 2))
    spec = Any(Constraint({0: 1.0}, 1e-3), Constraint({0: -1.0}, 1e-3))
    verdict = verify(Identity(), region, spec)
    assert isinstance(verdict, Unknown) and verdict.cause == "case-split"
    assert verdict.undecided == (0,)
    one_holds = Any(Constraint({0: 1.0}), Constraint({1: 1.0}, 1.5))
    assert isinstance(verify(Identity(), region, one_holds), Proved)


@pytest.mark.parametrize("seed", range(3))
def test_proved_properties_hold_at_samples(seed: int) -> None:
    model, generator = network(seed), torch.Generator().manual_seed(seed)
    x = torch.rand(1, 3, generator=generator)
    region = LinfBall(x, 0.15)
    outputs = model(x + 0.15 * (2 * torch.rand(4000, 3, generator=generator) - 1)).detach()
    found = set()
    for offset in (0.0, 0.3, 0.6, 2.0):
        one, two, three = (
            Constraint(torch.randn(3, generator=generator), offset) for _ in range(3)
        )
        spec = All(Any(one, two), Any(All(one, three), two))
        verdict = verify(model, region, spec, methods=("ibp", "crown-ibp"))
        found.add(verdict.name)
        held = [c.worst(c.rows(o))[1] > 0 for c in [verdict.clauses] for o in outputs[:500]]
        if isinstance(verdict, Proved):
            assert all(held)
        if isinstance(verdict, Refuted):
            assert_broken(model, verdict, region)
        if isinstance(verdict, Unknown):
            assert verdict.closest_margin > 0 and verdict.undecided
    assert "proved" in found


def test_a_counterexample_is_found_before_a_bound_that_lies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = plant(monkeypatch, lambda lower, _: torch.full_like(lower, 5.0))
    region = LinfBall(torch.zeros(1, 2), 1.0)
    assert_broken(Identity(), verify(Identity(), region, Constraint({0: 1.0}, 0.9)), region)
    assert not ran
    with pytest.raises(SoundnessError, match="bug in BoundGraph"):
        verify(Identity(), region, Constraint({0: 1.0}, 1.5))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_bounds_that_are_not_finite_prove_nothing(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    plant(monkeypatch, lambda lower, _: torch.full_like(lower, value))
    region, spec = LinfBall(torch.zeros(1, 2), 0.1), Constraint({0: 1.0}, 1.0)
    verdict = verify(Identity(), region, spec, methods=QUICK)
    assert isinstance(verdict, Unknown) and verdict.cause == "non-finite" and not verdict
    assert all(f"{name}: 1 of 1 bounds are NaN or infinite" in verdict.reason for name in QUICK)
    assert verdict.lower.tolist() == [-float("inf")]


def test_another_method_decides_where_one_gives_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda lower, m: lower * float("nan") if m == "ibp" else lower)
    verdict = verify(Identity(), LinfBall(torch.zeros(1, 2), 0.1), Constraint({0: 1.0}, 1.0))
    assert isinstance(verdict, Proved) and verdict.method == "crown-ibp"


def test_a_nan_output_refutes() -> None:
    class Overflow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(x) - torch.exp(x)

    region = Box(torch.full((1, 1), 0.0), torch.full((1, 1), 300.0))
    verdict = verify(Overflow(), region, Constraint([1.0], 100.0))
    assert isinstance(verdict, Refuted) and verdict.output.isnan().all()


def test_no_time_is_unknown_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model, region = network(), LinfBall(torch.zeros(1, 3), 0.01)
    label = int(model(region.center).argmax())
    verdict = verify(model, region, Margin(3), labels=label, timeout=0)
    assert isinstance(verdict, Unknown) and verdict.cause == "timeout"

    def slow(lower: Tensor, _: str) -> Tensor:
        time.sleep(2.1)
        return lower - 100

    ran = plant(monkeypatch, slow)
    verdict = verify(model, region, Margin(3), labels=label, timeout=2, attack=None)
    assert isinstance(verdict, Unknown) and verdict.cause == "timeout"
    assert "before crown-ibp" in verdict.reason and ran == ["ibp"]
    assert verdict.program is not None and verdict.methods == ("ibp",)


def test_a_stage_that_would_take_too_long_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = plant(monkeypatch, lambda lower, _: lower - 100)
    monkeypatch.setattr(_stages, "_OVERHEAD", -1e4)
    model, region = network(), LinfBall(torch.zeros(1, 3), 0.01)
    label = int(model(region.center).argmax())
    verdict = verify(model, region, Margin(3), labels=label, timeout=60, attack=None)
    assert isinstance(verdict, Unknown) and verdict.cause == "timeout"
    assert ran == ["ibp"] and "more than is left" in verdict.reason


def test_rows_go_in_chunks_that_memory_takes_and_too_little_is_unknown() -> None:
    model, x = network(), torch.rand(1, 3)
    spec = LinearSpec(torch.randn(12, 3), torch.full((12,), 50.0))
    whole = verify(model, LinfBall(x, 0.1), spec, methods=["crown-ibp"])
    small = verify(model, LinfBall(x, 0.1), spec, methods=["crown-ibp"], max_memory=1500)
    assert isinstance(whole, Proved) and isinstance(small, Proved)
    torch.testing.assert_close(whole.lower, small.lower)
    none = verify(model, LinfBall(x, 0.1), spec, methods=["crown-ibp"], max_memory=50)
    assert isinstance(none, Unknown) and none.cause == "memory"
    assert "max_memory=50" in none.reason


def test_several_inputs_of_which_one_is_fixed() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([x + y, x - y], 1)

    regions = [LinfBall(torch.ones(1, 2), 0.5), torch.full((1, 2), 0.25)]
    verdict = verify(Sum(), regions, Constraint({2: 1.0}), methods=["ibp"])
    assert isinstance(verdict, Proved)
    assert verdict.margin == pytest.approx(0.25)
    broken = verify(Sum(), regions, Constraint({2: 1.0}, -0.5))
    assert isinstance(broken, Refuted) and torch.equal(broken.counterexample[1], regions[1])


class Unbounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(x.reshape(-1, 1, 1)).reshape(-1, 1)


def test_what_cannot_be_verified_is_an_error_before_anything_runs() -> None:
    model, region = network(), LinfBall(torch.zeros(1, 3), 0.01)
    with pytest.raises(UnsupportedError):
        verify(Unbounded(), LinfBall(torch.zeros(1, 1), 0.1), Constraint([1.0]))
    with pytest.raises(ConfigError, match=r"model.eval\(\)"):
        verify(nn.Sequential(nn.Dropout()).train(), region, Margin(3), labels=0)
    with pytest.raises(ConfigError, match="unknown method"):
        verify(model, region, Margin(3), labels=0, methods=["nope"])
    with pytest.raises(ConfigError, match="timeout"):
        verify(model, region, Margin(3), labels=0, timeout=float("nan"))
    with pytest.raises(SpecError, match="labels"):
        verify(model, region, Margin(3))
    with pytest.raises(SpecError, match="out of range"):
        verify(model, region, Margin(3), labels=3)
    with pytest.raises(SpecError, match="spec must be"):
        verify(model, region, "robust")  # type: ignore[arg-type]
    with pytest.raises(RegionError, match="no input is perturbed"):
        verify(model, [torch.zeros(1, 3)], Margin(3), labels=0)
    with pytest.raises(RegionError, match="different batch sizes"):
        verify(model, [LinfBall(torch.zeros(2, 3), 0.1), torch.zeros(1, 3)], Margin(3), labels=0)
    broken = network()
    broken[0].weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"0\.weight"):
        verify(broken, region, Margin(3), labels=0)


def test_the_model_and_the_global_state_stay_as_they_are() -> None:
    model, region = network(), LinfBall(torch.zeros(1, 3), 0.3)
    state = torch.get_rng_state()
    seen: list[str] = []
    with torch.no_grad():
        verify(
            model,
            region,
            Margin(3),
            labels=0,
            attack=Attack(steps=3),
            methods=QUICK,
            progress=lambda now: seen.append(now.stage),
        )
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert seen[0] == "falsify"
