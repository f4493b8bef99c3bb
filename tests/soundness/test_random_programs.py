"""Bounds of random networks hold at points of random boxes, for every method."""

from __future__ import annotations

import random

import pytest
import torch
from random_models import random_box, random_model

import boundgraph as bg
from boundgraph.compiler import METHODS
from boundgraph.testing import check_model

# The search for slopes repeats a crown program twenty times; a few seeds are enough for it.
FAST = tuple(method for method in METHODS if method != "alpha-crown")
# One chunk per test: parallel workers share the load, and a failure names its seed.
CHUNKS, MODELS, POINTS = 12, 5, 6


def check_seed(
    seed: int | str,
    points: int,
    boxes: int = 1,
    methods: tuple[str, ...] = FAST,
    dtype: torch.dtype = torch.float64,
) -> int:
    """Draw a model and boxes; returns the number of program/box/point triples compared."""
    model, shapes = random_model(seed)
    model = model.to(dtype)
    compared = 0
    for index in range(boxes):
        rng = random.Random(f"box/{seed}/{index}")
        batch = rng.randint(1, 3)
        boxes_drawn = [random_box(shape, rng, batch) for shape in shapes]
        regions: list[object] = [bg.Box(b.lower.to(dtype), b.upper.to(dtype)) for b in boxes_drawn]
        if len(regions) == 2 and rng.random() < 0.3:
            regions[1] = torch.randn(batch, *shapes[1], dtype=dtype)
        try:
            options = {"methods": methods, "points": points, "seed": index}
            compared += check_model(model, *regions, **options)  # type: ignore[arg-type]
        except Exception as error:
            error.add_note(f"model seed {seed!r}, box {index}: {model}")
            raise
    return compared


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_programs(chunk: int) -> None:
    dtype = torch.float32 if chunk % 3 == 0 else torch.float64
    seeds = (f"ci/{chunk}/{index}" for index in range(MODELS))
    compared = sum(check_seed(seed, POINTS, dtype=dtype) for seed in seeds)
    assert compared == MODELS * POINTS


@pytest.mark.parametrize("seed", range(3))
def test_optimised_slopes(seed: int) -> None:
    check_seed(f"alpha/{seed}", POINTS, methods=("crown", "alpha-crown"))


@pytest.mark.nightly
@pytest.mark.parametrize("chunk", range(50))
def test_ten_thousand_triples(chunk: int) -> None:
    base = random.SystemRandom().getrandbits(32)
    dtype = torch.float32 if chunk % 3 == 0 else torch.float64
    seeds = (f"{base}/{index}" for index in range(6))
    compared = sum(check_seed(seed, points=12, boxes=3, dtype=dtype) for seed in seeds)
    print(f"{compared} triples, seed {base}")
    assert compared == 6 * 3 * 12
