"""Compare bounds with exact rational values of random networks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from random_models import random_box, random_model
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.compiler import CompileOptions
from boundgraph.compiler import _capture as capture_model
from boundgraph.runtime.emit import ConstantTable, parameter_lookup
from boundgraph.testing._exact import ExactProgram, fractions, outside

METHODS = ("ibp", "crown-ibp", "crown", "symbolic", "mix")


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
    point_of: Callable[[Any, random.Random], np.ndarray] = rational_point,
    **options: Any,
) -> tuple[int, dict[str, int]]:
    """Compare bounds of every method with exact values; counts compared and missed elements.

    Args:
        point_of: draws a real point of a region.
    """
    reference = exact_program(model, regions)
    found = {m: bg.compile(model, *regions, method=m, **options)(*regions) for m in methods}
    compared, missed = 0, dict.fromkeys(methods, 0)
    for _ in range(points):
        point = [r if isinstance(r, Tensor) else point_of(r, rng) for r in regions]
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
