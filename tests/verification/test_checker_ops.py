"""What the checker thinks that ops mean, against torch, in exact arithmetic."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from boundgraph import ops
from boundgraph.domains.interval import Interval
from boundgraph.testing._ops import DrawnCase, draw_case
from boundgraph.testing._rounding import allowance, excess
from boundgraph.verification._record import _plain
from boundgraph.verification.checker_bounds import Engine
from boundgraph.verification.checker_network import CURVES, JOINS, MOVES, SPATIAL, Network
from boundgraph.verification.checker_numbers import Arithmetic, Refused

AFFINE = ("linear", "mul", "div", "neg", "add_scalar", "mul_scalar", "div_scalar")
REDUCED = ("sum", "mean", "batch_norm")
KNOWN = sorted(
    {*JOINS, *MOVES, *AFFINE, *REDUCED, *CURVES}
    | {f"{name}{n}d" for name in SPATIAL for n in (1, 2, 3)}
)
# Registered under these names and drawn by their samplers; the others wait for their ops.
TESTED = [name for name in KNOWN if (spec := ops.get(name)) is not None and spec.sample]


def _one_sample(name: str, rng: random.Random) -> DrawnCase:
    """A use on a batch of one, of one bounded operand unless it is a sum or a join."""
    spec = ops.get(name)
    assert spec is not None
    while True:
        drawn = draw_case(spec, rng)
        alone = name in JOINS or sum(isinstance(x, Interval) for x in drawn.operands) == 1
        if not alone:
            continue
        if name[:-2] not in SPATIAL:
            return drawn
        first = drawn.operands[0]
        cut = Interval(first.lower[:1], first.upper[:1])
        shapes = ((1, *drawn.case.shapes[0][1:]), *drawn.case.shapes[1:])
        return DrawnCase(spec, replace(drawn.case, shapes=shapes), (cut, *drawn.operands[1:]))


def _network(drawn: DrawnCase, exact: bool) -> Network:
    inputs, names, tensors = [], [], {}
    for i, operand in enumerate(drawn.operands):
        if isinstance(operand, Interval):
            inputs.append({"name": f"x{i}", "shape": list(operand.lower.shape)})
            names.append(f"%x{i}")
        else:
            tensors[f"c{i}"] = operand.numpy()
            names.append(f"@c{i}")
    attrs = {key: _plain(value) for key, value in drawn.attrs.items()}
    node = {"name": "y", "op": drawn.spec.name, "inputs": names, "attrs": attrs}
    program = {"inputs": inputs, "nodes": [node], "output": "%y"}
    return Network(program, tensors, Arithmetic(exact))


def _bounded(drawn: DrawnCase, point: tuple[Any, ...]) -> list[torch.Tensor]:
    pairs = zip(drawn.operands, point, strict=True)
    return [p for operand, p in pairs if isinstance(operand, Interval)]


def _value(network: Network, inputs: list[torch.Tensor]) -> np.ndarray:
    """Ends of the value at a point, as `[2, elements]` doubles."""
    ar = network.arithmetic
    points = [ar.array(x.numpy().ravel()) for x in inputs]
    engine = Engine(network, [(p, p) for p in points], {})
    low, high = engine.forward(network.output)
    return np.stack([low.astype(np.float64), high.astype(np.float64)])


def test_every_known_op_of_the_registry_is_tested() -> None:
    missing = {name for name in KNOWN if ops.get(name) is not None} - set(TESTED)
    assert missing <= {"detach"}, missing


@pytest.mark.parametrize("name", TESTED)
def test_an_op_means_what_it_means_to_torch(name: str) -> None:
    for index in range(25):
        rng = random.Random(f"{name}/{index}")
        drawn = _one_sample(name, rng)
        point = drawn.point(rng)
        expected = drawn.spec.concrete(*point, **drawn.attrs)
        network = _network(drawn, exact=True)
        low, high = _value(network, _bounded(drawn, point))
        assert network.steps[network.output].shape == tuple(expected.shape), str(drawn)
        ends = [torch.from_numpy(end).reshape(expected.shape) for end in (low, high)]
        operands = [
            Interval(p, p) if isinstance(operand, Interval) else p
            for operand, p in zip(drawn.operands, point, strict=True)
        ]
        allowed = allowance(drawn.spec, operands, drawn.attrs, Interval(expected, expected))
        assert not excess(expected, Interval(*ends), allowed).any(), str(drawn)
        if name not in CURVES:
            # And nothing wider: what the checker has is the value itself.
            assert not excess(Interval(*ends), Interval(expected, expected), allowed).any()


@pytest.mark.parametrize("name", [n for n in TESTED if n not in CURVES])
def test_transposes_are_transposes(name: str) -> None:
    """`a·(M x) = (Mᵀ a)·x` for integers, exactly, and |M| is M without signs."""
    for index in range(10):
        rng = random.Random(f"transpose/{name}/{index}")
        network = _network(_one_sample(name, rng), exact=True)
        step = network.steps[network.output]
        for source, map_ in step.parts:
            inputs = network.steps[source].size
            x = np.array([[Fraction(rng.randint(-9, 9)) for _ in range(inputs)]], dtype=object)
            a = np.array([[Fraction(rng.randint(-9, 9)) for _ in range(step.size)]], dtype=object)
            assert (a * map_.apply(x)).sum() == (map_.transpose(a) * x).sum()
            unit = np.zeros((inputs, inputs), dtype=object)
            unit[np.arange(inputs), np.arange(inputs)] = Fraction(1)
            assert (map_.absolute().apply(abs(x)) >= abs(map_.apply(x))).all()
            dense = map_.apply(unit)
            assert (map_.absolute().apply(unit) == abs(dense)).all()
            assert (dense != 0).sum(0).max() <= map_.terms
            assert (dense != 0).sum(1).max() <= map_.terms_back


@pytest.mark.parametrize("name", TESTED)
def test_intervals_hold_without_tolerance(name: str) -> None:
    """Exact values at points of a box lie in the float64 interval of the box."""
    for index in range(15):
        rng = random.Random(f"interval/{name}/{index}")
        drawn = _one_sample(name, rng)
        if name in ("sigmoid", "tanh"):
            return  # against high precision in test_checker_bounds
        network = _network(drawn, exact=False)
        boxes = [x for x in drawn.operands if isinstance(x, Interval)]
        region = [(b.lower.numpy().ravel(), b.upper.numpy().ravel()) for b in boxes]
        low, high = Engine(network, region, {}).forward(network.output)
        exact = _network(drawn, exact=True)
        for _ in range(4):
            given = [exact.arithmetic.array(p.numpy().ravel()) for p in
                     _bounded(drawn, drawn.point(rng))]  # fmt: skip
            value, most = Engine(exact, [(p, p) for p in given], {}).forward(exact.output)
            # What the checker knows only up to an error is itself an interval.
            assert all(Fraction(a) <= m for a, m in zip(low.tolist(), most, strict=True)), drawn
            assert all(Fraction(b) >= v for b, v in zip(high.tolist(), value, strict=True)), drawn


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        ("gelu", ["%x"], {}),
        ("mul", ["%x", "%x"], {}),
        ("linear", ["@w", "%x"], {}),
        ("_step", ["%x"], {}),
        ("conv2d", ["%x", "@w"], {"stride": [0, 1], "padding": [0, 0], "dilation": [1, 1],
                                  "groups": 1}),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused(op: str, inputs: list[str], attrs: Any) -> None:
    tensors = {"w": np.ones((1, 1, 1, 1) if op == "conv2d" else (2, 2))}
    shape = [1, 1, 2, 2] if op == "conv2d" else [2, 2]
    node = {"name": "y", "op": op, "inputs": inputs, "attrs": attrs}
    program = {"inputs": [{"name": "x", "shape": shape}], "nodes": [node], "output": "%y"}
    with pytest.raises(Refused):
        Network(program, tensors, Arithmetic(exact=False))
