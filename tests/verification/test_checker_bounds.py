"""The checker's float64 bounds against exact rationals, on networks made to be hard."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest

from boundgraph.verification.checker_bounds import Engine, _curved
from boundgraph.verification.checker_network import Network
from boundgraph.verification.checker_numbers import Arithmetic, Refused, s_shaped

KINDS = ("plain", "huge biases", "cancelling", "subnormal", "point", "thin")


def _network(rng: random.Random, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    draw = np.random.default_rng(rng.getrandbits(32))
    sizes = [3, *(draw.integers(2, 6, draw.integers(1, 4))), 2]
    tensors, nodes, value, shape = {}, [], "%x", 3
    kept = {"%x": 3}
    for i, size in enumerate(sizes[1:]):
        weight = draw.normal(size=(size, shape)).astype(np.float32)
        bias = draw.normal(size=size).astype(np.float32)
        if kind == "huge biases":
            bias = bias * np.float32(1e9)
        if kind == "cancelling":
            weight = np.concatenate([weight[:1] * (1 + 1e-7 * j) for j in range(size)])
            weight = (weight * np.where(np.arange(shape) % 2, -1, 1)).astype(np.float32)
        if kind == "subnormal":
            weight, bias = weight * np.float32(1e-40), bias * np.float32(1e-42)
        tensors |= {f"w{i}": weight, f"b{i}": bias}
        nodes.append(("linear", [value, f"@w{i}", f"@b{i}"], {}))
        value, shape = f"%n{len(nodes) - 1}", int(size)
        if i + 2 < len(sizes):
            slope = float(draw.choice([0.0, 0.1, 2.0, -0.5]))
            curve = ("relu", {}) if slope == 0.0 else ("leaky_relu", {"negative_slope": slope})
            nodes.append((curve[0], [value], curve[1]))
            value = f"%n{len(nodes) - 1}"
            same = [name for name, width in kept.items() if width == shape]
            if same:
                nodes.append((str(draw.choice(["add", "sub"])), [value, same[-1]], {}))
                value = f"%n{len(nodes) - 1}"
        kept[value] = shape
    program = {
        "inputs": [{"name": "x", "shape": [1, 3]}],
        "nodes": [
            {"name": f"n{i}", "op": op, "inputs": inputs, "attrs": attrs}
            for i, (op, inputs, attrs) in enumerate(nodes)
        ],
        "output": value,
    }
    return program, tensors


def _region(draw: np.random.Generator, kind: str) -> tuple[np.ndarray, np.ndarray]:
    center = draw.normal(size=3).astype(np.float32).astype(np.float64)
    radius = {"point": 0.0, "thin": 1e-12}.get(kind, float(draw.choice([1e-3, 0.1, 2.0])))
    return center - radius, center + radius


def _slopes(engine: Engine, draw: np.random.Generator) -> None:
    """Enclose everything, with arbitrary slopes, some of them absurd."""
    for at, step in enumerate(engine.network.steps):
        if step.parts or step.source >= 0:
            engine.set(at, *engine.forward(at))
        if step.curve is not None:
            engine.slopes[at] = tuple(
                engine.ar.array(draw.choice([0.0, 1.0, 0.5, 0.3, -0.2, 1.7], step.size))
                for _ in range(2)
            )


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_without_tolerance(kind: str) -> None:
    for index in range(25):
        rng = random.Random(f"{kind}/{index}")
        program, tensors = _network(rng, kind)
        draw = np.random.default_rng(rng.getrandbits(32))
        low, high = _region(draw, kind)
        floats = Network(program, tensors, Arithmetic(exact=False))
        engine = Engine(floats, [(low, high)], {})
        seed = rng.getrandbits(32)
        _slopes(engine, np.random.default_rng(seed))
        rows = draw.choice([-1.0, 0.0, 1.0, 0.1], (3, 2))
        bound = engine.backward(floats.output, rows)
        least = engine.least(rows, floats.output)
        rational = Network(program, tensors, Arithmetic(exact=True))
        exact_rows = rational.arithmetic.array(rows)
        ends = [rational.arithmetic.array(e) for e in (low, high)]
        proved = Engine(rational, [(ends[0], ends[1])], {})
        _slopes(proved, np.random.default_rng(seed))
        exact = proved.backward(rational.output, exact_rows)
        assert all(Fraction(b) <= e for b, e in zip(bound.tolist(), exact, strict=True)), index
        for _ in range(6):
            share = draw.choice([0.0, 1.0, draw.random()], 3)
            share = [Fraction(float(s)) for s in share]
            point = np.array(
                [a + s * (b - a) for a, b, s in zip(*ends, share, strict=True)], dtype=object
            )
            walk = Engine(rational, [(point, point)], {})
            _slopes(walk, np.random.default_rng(seed))
            for at in range(len(floats.steps)):
                for own, value in zip((0, 1), walk.ends[at], strict=True):
                    inside = engine.ends[at][own].tolist()
                    pairs = zip(inside, value, strict=True)
                    assert all(Fraction(e) <= v if own == 0 else Fraction(e) >= v for e, v in pairs)
            values = exact_rows @ walk.ends[rational.output][0]
            for found in (bound, least, exact):
                pairs = zip(found.tolist(), values, strict=True)
                assert all(Fraction(b) <= v for b, v in pairs), (index, kind)


@pytest.mark.parametrize("fault", ["no_error", "no_radius"])
def test_faults_in_the_arithmetic_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The law above fails where γ or the radius is dropped: it can tell."""
    if fault == "no_error":
        monkeypatch.setattr(Arithmetic, "gamma", lambda self, terms: 0 * self.u)
        monkeypatch.setattr(Arithmetic, "up", lambda self, x: x)
        monkeypatch.setattr(Arithmetic, "down", lambda self, x: x)
        monkeypatch.setattr(Arithmetic, "above", lambda self, total, terms: total)
    else:
        center = Engine._center
        monkeypatch.setattr(
            Engine,
            "_center",
            lambda self, low, high: (center(self, low, high)[0], 0 * (high - low)),
        )

    def all_kinds() -> None:
        for kind in KINDS:
            test_bounds_hold_without_tolerance(kind)

    with pytest.raises(AssertionError):
        all_kinds()


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_curves_are_enclosed(name: str) -> None:
    function = mpmath.tanh if name == "tanh" else (lambda x: 1 / (1 + mpmath.exp(-x)))
    draw = np.random.default_rng(0)
    points = np.concatenate([draw.normal(size=300) * 8, [0.0, -0.0, 40.0, -40.0, 41.0, 1e300, -800],
                             10.0 ** -draw.uniform(0, 300, 30)])  # fmt: skip
    low, high = s_shaped(name, points)
    with mpmath.workdps(400):
        for x, below, above in zip(points.tolist(), low.tolist(), high.tolist(), strict=True):
            value = function(mpmath.mpf(x))
            assert mpmath.mpf(below) <= value <= mpmath.mpf(above), x
    assert ((high - low) < 1e-9).all()


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_lines_of_curves_are_lines_below_and_above(name: str) -> None:
    function = mpmath.tanh if name == "tanh" else (lambda x: 1 / (1 + mpmath.exp(-x)))
    draw = np.random.default_rng(1)
    ends = np.sort(draw.normal(size=(60, 2)) * draw.choice([0.01, 1, 10], (60, 1)), axis=1)
    ends[:5, 1] = ends[:5, 0]
    slopes = draw.choice([0.0, 0.1, 0.25, 1.0, -0.3], 60)
    below, above = _curved(name, ends[:, 0], ends[:, 1], slopes)
    with mpmath.workdps(60):
        for (low, high), slope, b, a in zip(
            ends.tolist(), slopes.tolist(), below.tolist(), above.tolist(), strict=True
        ):
            for share in (0.0, 1.0, *draw.random(10).tolist()):
                x = mpmath.mpf(low) + share * (mpmath.mpf(high) - mpmath.mpf(low))
                gap = function(x) - slope * x
                assert b <= gap <= a


def test_overflow_is_refused() -> None:
    program = {
        "inputs": [{"name": "x", "shape": [1, 1]}],
        "nodes": [{"name": "y", "op": "mul_scalar", "inputs": ["%x"], "attrs": {"other": 1e300}}],
        "output": "%y",
    }
    network = Network(program, {}, Arithmetic(exact=False))
    engine = Engine(network, [(np.array([-1e200]), np.array([1e200]))], {})
    with np.errstate(all="ignore"), pytest.raises(Refused, match="overflow"):
        engine.set(1, *engine.forward(1))


@pytest.mark.parametrize("order", [1, -1])
def test_sums_that_overflow_on_their_way_prove_nothing(order: int) -> None:
    """The terms add up to -1.28e309 in reals; in floats they reach infinity first."""
    weights = np.array([[1e308] * 64 + [-1.2e308] * 64])[:, ::order]
    program = {
        "inputs": [{"name": "x", "shape": [1, 128]}],
        "nodes": [{"name": "y", "op": "linear", "inputs": ["%x", "@w"], "attrs": {}}],
        "output": "%y",
    }
    network = Network(program, {"w": weights}, Arithmetic(exact=False))
    engine = Engine(network, [(np.ones(128), np.ones(128))], {})
    with np.errstate(all="ignore"):
        low, high = engine.forward(1)
        assert not (low > 0).any() and not (high < 0).any()
        assert not (engine.least(weights, 0) > 0).any()
        with pytest.raises(Refused, match="overflow"):
            engine.backward(1, np.ones((1, 1)))
        with pytest.raises(Refused, match="overflow"):
            engine.set(1, low, high)
