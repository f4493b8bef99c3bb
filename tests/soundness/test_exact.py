"""Rounding-sound bounds contain the exact value of the network: no tolerance at all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from random_models import random_box, random_model
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.compiler import CompileOptions
from boundgraph.compiler import _capture as capture_model
from boundgraph.errors import UnsupportedError
from boundgraph.runtime.emit import ConstantTable, parameter_lookup
from boundgraph.testing._exact import ExactProgram, fractions, outside

METHODS = ("ibp", "crown-ibp", "crown")


def exact_program(model: nn.Module, regions: Sequence[Any]) -> ExactProgram:
    captured = capture_model(model, regions, {}, CompileOptions())
    lookup = parameter_lookup(captured.root, ConstantTable(dict(captured.constants)))
    return ExactProgram(captured.program, lookup)


def rational_point(box: bg.Box, rng: random.Random) -> np.ndarray:
    """A real point of the box: corners, float points, and points between floats."""
    low, high = fractions(box.lower), fractions(box.upper)
    kind = rng.choice(("corner", "mixed", "between"))
    out = np.empty(low.size, dtype=object)
    for i, (a, b) in enumerate(zip(low.reshape(-1), high.reshape(-1), strict=True)):
        share = (
            Fraction(rng.randint(0, 1)) if kind == "corner" else Fraction(rng.randint(0, 48), 48)
        )
        if kind == "mixed" and rng.random() < 0.5:
            share = Fraction(rng.randint(0, 1))
        out[i] = a + share * (b - a)
    return out.reshape(low.shape)


def misses(
    model: nn.Module,
    regions: Sequence[Any],
    rng: random.Random,
    *,
    methods: Sequence[str] = METHODS,
    points: int = 4,
    **options: Any,
) -> tuple[int, dict[str, int]]:
    """Compare bounds of every method with exact values; counts compared and missed elements."""
    reference = exact_program(model, regions)
    found = {m: bg.compile(model, *regions, method=m, **options)(*regions) for m in methods}
    compared, missed = 0, dict.fromkeys(methods, 0)
    for _ in range(points):
        point = [r if isinstance(r, Tensor) else rational_point(r, rng) for r in regions]
        (value,) = reference(*point)
        for method, bounds in found.items():
            missed[method] += len(outside(value, bounds.lower.detach(), bounds.upper.detach()))
            compared += value.size
    return compared, missed


def drawn(seed: int | str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, list[bg.Box]]:
    model, shapes = random_model(f"exact/{seed}")
    rng = random.Random(f"exact/{seed}")
    boxes = [random_box(shape, rng, rng.randint(1, 2)) for shape in shapes]
    if len({len(b.lower) for b in boxes}) > 1:
        boxes = [bg.Box(b.lower[:1], b.upper[:1]) for b in boxes]
    return model.to(dtype), [bg.Box(b.lower.to(dtype), b.upper.to(dtype)) for b in boxes]


@pytest.mark.parametrize("chunk", range(3))
def test_random_programs_contain_the_exact_value(chunk: int) -> None:
    compared, refused = 0, 0
    for index in range(5):
        model, boxes = drawn(f"{chunk}/{index}", torch.float64 if index == 4 else torch.float32)
        try:
            count, missed = misses(model, boxes, random.Random(index), rounding="sound")
        except UnsupportedError as error:
            refused += 1
            print(error)
            continue
        assert not any(missed.values()), (chunk, index, missed, model)
        compared += count
    print(f"{compared} exact checks, {refused} models refused")
    assert compared > 100
    assert refused == 0


def test_rounding_to_nearest_misses_the_exact_value() -> None:
    """The same comparison finds plain bounds wrong, so it can fail."""
    compared, missed = 0, dict.fromkeys(METHODS, 0)
    for index in range(4):
        model, boxes = drawn(f"0/{index}")
        count, found = misses(model, boxes, random.Random(index))
        compared += count
        missed = {method: missed[method] + found[method] for method in METHODS}
    print(f"{missed} of {compared} exact checks missed by rounding to nearest")
    assert all(missed.values())
