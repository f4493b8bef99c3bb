"""Adversarial networks and planted faults, against exact values; no tolerance."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from exact_bounds import METHODS, exact_program, misses
from exact_draws import (
    BALL_METHODS,
    BOX_METHODS,
    NETWORKS,
    REGIONS,
    drawn_network,
    drawn_region,
    point_of,
)
from torch import nn

import boundgraph as bg
from boundgraph import compiler
from boundgraph.domains import rounding, sound_form
from boundgraph.domains.interval import Interval
from boundgraph.domains.regions import LpBall
from boundgraph.domains.rounding import Outward, Precision
from boundgraph.errors import UnsupportedError
from boundgraph.ops import _sound, _spec
from boundgraph.passes import FoldAffine, RelaxIBP
from boundgraph.testing import draw_case
from boundgraph.testing._exact import fractions, outside


def _set(layer: Any, weight: Any, bias: Any = None) -> Any:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def cancellation() -> nn.Module:
    """Rows of large entries that nearly cancel, on inputs that are nearly equal."""
    torch.manual_seed(0)
    half = torch.randn(6, 8) * 1e4
    return nn.Sequential(
        _set(nn.Linear(16, 6), torch.cat([half, -half], 1) + torch.randn(6, 16) * 1e-3),
        nn.ReLU(),
        nn.Linear(6, 3),
    )


def near_identity() -> nn.Module:
    """A deep chain of layers a rounding away from the identity."""
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for _ in range(6):
        layer = nn.Linear(5, 5)
        layers += [_set(layer, torch.eye(5) * (1 + 3e-7) + torch.randn(5, 5) * 1e-7), nn.ReLU()]
    return nn.Sequential(*layers)


def subnormal() -> nn.Module:
    torch.manual_seed(2)
    small = torch.randn(6, 5) * 1e-40
    return nn.Sequential(_set(nn.Linear(5, 6), small, torch.zeros(6)), nn.ReLU(), nn.Linear(6, 3))


def huge_bias() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        _set(nn.Linear(5, 6), torch.randn(6, 5), torch.randn(6) * 1e4),
        nn.ReLU(),
        _set(nn.Linear(6, 4), torch.randn(4, 6), torch.randn(4) * 1e4),
    )


def convolution() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.BatchNorm2d(4),
        nn.ConvTranspose2d(4, 2, 2, stride=2), nn.LeakyReLU(0.01), nn.AvgPool2d(2, 1),
        nn.Flatten(), nn.LazyLinear(3),
    )  # fmt: skip


def s_shaped() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 2))


def differences() -> nn.Module:
    """Pairs of rows that are nearly equal, subtracted: coefficients of a product cancel."""
    torch.manual_seed(6)
    rows = torch.randn(6, 8)
    pairs = torch.cat([rows, rows + torch.randn(6, 8) * 1e-3])
    outer = torch.randn(3, 6) * 1e4
    return nn.Sequential(
        _set(nn.Linear(8, 12), pairs), _set(nn.Linear(12, 3), torch.cat([outer, -outer], 1))
    )


def cancelling_shift() -> nn.Module:
    """Batch normalisation whose mean and offset cancel."""
    norm = _set(nn.BatchNorm1d(4), torch.full((4,), 0.7), torch.full((4,), 7001.7))
    with torch.no_grad():
        norm.running_mean.copy_(torch.rand(4) + 1e4)
    return norm  # type: ignore[no-any-return]


def one_input() -> nn.Module:
    torch.manual_seed(8)
    return nn.Linear(1, 6)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cancellation": (cancellation, (16,)),
    "near identity": (near_identity, (5,)),
    "subnormal weights": (subnormal, (5,)),
    "huge biases": (huge_bias, (5,)),
    "convolution": (convolution, (2, 4, 4)),
    "differences": (differences, (8,)),
    "cancelling shift": (cancelling_shift, (4,)),
    "one input": (one_input, (1,)),
    "s-shaped": (s_shaped, (5,)),
}


def box_of(name: str, eps: float) -> tuple[nn.Module, bg.Box]:
    make, shape = CASES[name]
    model = make()
    generator = torch.Generator().manual_seed(7)
    center = torch.rand((1, *shape), generator=generator)
    # Sizes the lazy layer, without statistics of a batch.
    model.eval()(center)
    return model, bg.Box(center - eps, center + eps)


@pytest.mark.parametrize("eps", [0.0, 1 / 255])
@pytest.mark.parametrize("name", CASES)
def test_adversarial_networks(name: str, eps: float) -> None:
    model, box = box_of(name, eps)
    compared, missed = misses(model, [box], random.Random(0), points=3, rounding="sound")
    assert compared
    assert missed == dict.fromkeys(METHODS, 0)


@pytest.mark.parametrize("name", ["cancellation", "near identity", "huge biases"])
def test_rounding_to_nearest_misses_them(name: str) -> None:
    model, box = box_of(name, 0.0)
    _, missed = misses(model, [box], random.Random(0), points=2)
    assert all(missed.values()), missed


def _without_gamma(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Precision, "steps", lambda self, terms: -1)


def _without_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sound, "offset_of", lambda *_: None)


def _swapped_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Outward, "lower", property(lambda self: self.center + self.radius))


def _smaller_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "grown", lambda value, p: value * (1.0 - 1e-4))


def _intervals_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interval rules of the nearest mode."""
    run = RelaxIBP.run
    monkeypatch.setattr(
        RelaxIBP, "run", lambda self, program: run(replace(self, sound=False), program)
    )


def _uncharged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward: the error of the coefficients is dropped."""

    def charged(self: Any, form: Any, *terms: Any) -> Any:
        return sound_form.SoundForm(form.coeff, form.offset, self.error, self.precision)

    monkeypatch.setattr(sound_form.SoundForm, "charged", charged)


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, str, float]] = {
    "γ is dropped": (_without_gamma, "ibp", "differences", 0.0),
    "the offset is forgotten": (_without_offset, "ibp", "cancelling shift", 0.0),
    "a direction is swapped": (_swapped_direction, "ibp", "huge biases", 0.0),
    "the radius shrinks": (_smaller_radius, "ibp", "one input", 0.1),
    "intervals are rounded to nearest": (_intervals_to_nearest, "ibp", "near identity", 0.0),
    "coefficient errors are dropped": (_uncharged, "crown-ibp", "differences", 0.0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, method, name, eps = FAULTS[fault]
    model, box = box_of(name, eps)
    options: dict[str, Any] = {"methods": (method,), "points": 8, "rounding": "sound"}
    assert misses(model, [box], random.Random(0), **options)[1][method] == 0
    plant(monkeypatch)
    assert misses(model, [box], random.Random(0), **options)[1][method] > 0


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_weights_merged_to_nearest_are_not_taken_for_exact(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nearest mode merges layers in floating point; a sound program must not."""
    steps = compiler.pipeline

    def merging(program: Any, bounded: Any, options: Any) -> Any:
        return (FoldAffine(), *steps(program, bounded, options))

    monkeypatch.setattr(compiler, "pipeline", merging)
    model, box = box_of("differences", 0.0)
    with pytest.raises(UnsupportedError, match=r"compose_weight|operand"):
        bg.compile(model, box, method=method, rounding="sound")


def test_forgotten_underflow_is_found() -> None:
    """Products of 2⁻¹²⁰ and 2⁻⁴⁰ vanish in float32, but not in real arithmetic."""
    layer = _set(nn.Linear(3, 2), torch.full((2, 3), 2.0**-120), torch.zeros(2)).eval()
    point = torch.full((1, 3), 2.0**-40)
    box = bg.Box(point, point)
    assert misses(layer, [box], random.Random(0), rounding="sound")[1] == dict.fromkeys(METHODS, 0)
    blind = {name: replace(p, tiny=0.0) for name, p in rounding.PRECISIONS.items()}
    known = dict(rounding.PRECISIONS)
    try:
        rounding.PRECISIONS.update(blind)
        assert all(misses(layer, [box], random.Random(0), rounding="sound")[1].values())
    finally:
        rounding.PRECISIONS.update(known)


def _reference(spec: _spec.OpSpec, point: list[Any], attrs: Any) -> torch.Tensor:
    """The op in float64, which is exact to 29 more bits than the float32 bound."""
    wide = [v.double() if v.is_floating_point() else v for v in point]
    return spec.concrete(*wide, **attrs)


@pytest.mark.parametrize(
    "name",
    [
        spec.name
        for spec in _spec.all_ops()
        if spec.sample is not None and spec.interval is not None and _sound.why_not(spec) is None
    ],
)
def test_every_op_of_the_registry(name: str) -> None:
    """The sound interval of each op contains its values, from declarations alone."""
    spec = _spec.get(name)
    assert spec is not None
    rule = _sound.interval_rule(spec)
    assert rule is not None
    for index in range(8):
        rng = random.Random(f"{name}/{index}")
        case = draw_case(spec, rng, torch.float32)
        count = 0
        if spec.rounding.terms is not None:
            parts = [v.any_part if isinstance(v, Interval) else v for v in case.operands]
            count = spec.rounding.terms(*parts, **case.attrs)
        terms = int(-(-(count + spec.rounding.ulps) // 1))
        found = rule(*case.operands, terms=terms, precision="f32", **case.attrs)
        assert isinstance(found, Outward)
        for _ in range(6):
            point = list(case.point(rng))
            value = _reference(spec, point, case.attrs)
            # At a pole the function has no value.
            kept = torch.isfinite(value)
            wrong = outside(fractions(value[kept]), found.lower[kept], found.upper[kept])
            assert not wrong, (name, index, wrong[0], case)


@pytest.mark.parametrize("name", ["cancellation", "near identity", "huge biases", "convolution"])
def test_executed_values_are_contained(name: str) -> None:
    """Target "executed": what the float32 network gives, for several orders of summation."""
    model, box = box_of(name, 1e-6)
    program = bg.compile(model, box, rounding="sound", target="executed")
    bounds = program(box)
    (exact,) = exact_program(model, [box])(box.lower)
    assert not outside(exact, bounds.lower, bounds.upper)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(20):
            share = torch.rand(box.lower.shape, generator=generator)
            point = (box.lower + share * (box.upper - box.lower)).clamp(box.lower, box.upper)
            for batch in (1, 7):
                got = model(point.expand(batch, *point.shape[1:]).clone())[:1]
                assert bool(((bounds.lower <= got) & (got <= bounds.upper)).all())


def _draw(seed: str) -> tuple[str, str, nn.Module, list[Any]]:
    """A network and its regions: the kinds drawn, and both."""
    rng = random.Random(seed)
    dtype = torch.float64 if rng.random() < 0.2 else torch.float32
    network, region = rng.choice((*NETWORKS, "program", "program")), rng.choice(REGIONS)
    model, shapes = drawn_network(network, rng, dtype)
    batch = rng.randint(1, 2)
    return network, region, model, [drawn_region(region, s, batch, rng, dtype) for s in shapes]


def _checked(seed: str, points: int) -> tuple[str, str, dict[str, int], UnsupportedError | None]:
    """Checks of each method on a drawn case, none of which may miss."""
    network, kind, model, regions = _draw(seed)
    balls = any(isinstance(region, LpBall) for region in regions)
    methods = BALL_METHODS if balls else BOX_METHODS
    options: dict[str, Any] = {"points": points, "point_of": point_of, "rounding": "sound"}
    try:
        count, missed = misses(model, regions, random.Random(seed), methods=methods, **options)
    except UnsupportedError as error:
        return network, kind, {}, error
    assert not any(missed.values()), (seed, network, kind, missed)
    return network, kind, dict.fromkeys(methods, count // len(methods)), None


def test_drawn_cases() -> None:
    for index in range(3):
        *_, counts, refused = _checked(f"drawn/{index}", 2)
        assert counts or refused


@pytest.mark.nightly
def test_a_million_exact_checks() -> None:
    """All methods, kinds of regions and of networks; prints how many checks and the seed.

    `BOUNDGRAPH_SEED` repeats a run, `BOUNDGRAPH_CHECKS` asks for another number.
    """
    base = int(os.environ.get("BOUNDGRAPH_SEED", random.SystemRandom().getrandbits(32)))
    wanted = int(os.environ.get("BOUNDGRAPH_CHECKS", 1_000_000))
    tally: dict[str, Counter[str]] = {"method": Counter(), "region": Counter(), "net": Counter()}
    reasons: Counter[str] = Counter()
    index = 0
    while tally["method"].total() < wanted:
        network, region, counts, refused = _checked(f"{base}/{index}", 120)
        tally["method"].update(counts)
        tally["region"][region] += sum(counts.values())
        tally["net"][network] += sum(counts.values())
        if refused is not None:
            reasons[str(refused).splitlines()[0]] += 1
        index += 1
        if index % 10 == 0:
            print(f"{tally['method'].total():,} checks, {index} programs", flush=True)
    total = tally["method"].total()
    print(f"{total:,} exact checks, {index} programs, seed {base}, 0 missed; refused: {reasons}")
    for kind, counts in tally.items():
        print(f"by {kind}: " + ", ".join(f"{name} {n:,}" for name, n in counts.most_common()))
    assert Fraction(reasons.total(), index) < Fraction(1, 5)


@pytest.mark.parametrize("first", [nn.ReLU(), nn.LeakyReLU(0.1)])
def test_optimised_slopes(first: nn.Module) -> None:
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Linear(3, 6), first, nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)
    ).eval()
    box = bg.LinfBall(torch.randn(2, 3), 0.3).interval()
    region = bg.Box(box.lower, box.upper)
    methods = ("alpha-crown", "crown")
    compared, missed = misses(model, [region], random.Random(5), methods=methods, rounding="sound")
    assert compared
    assert not any(missed.values()), missed
    alpha, crown = (bg.compile(model, region, method=m, rounding="sound")(region) for m in methods)
    assert bool((alpha.lower >= crown.lower).all() & (alpha.upper <= crown.upper).all())
    if isinstance(first, nn.ReLU):
        # leaky relu has one lower line, and no slope to choose.
        assert float(alpha.width.sum()) < float(crown.width.sum().detach())
