"""What the samplers of several ops draw."""

from __future__ import annotations

import random


def random_shape(rng: random.Random, least: int = 1, most: int = 3) -> tuple[int, ...]:
    return tuple(rng.randint(1, 4) for _ in range(rng.randint(least, most)))
