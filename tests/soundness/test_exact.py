"""Rounding-sound bounds contain the exact value of the network: no tolerance at all."""

from __future__ import annotations

import random

import pytest
import torch
from exact_bounds import METHODS, drawn, misses

from boundgraph.errors import UnsupportedError


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
