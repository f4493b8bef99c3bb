"""Seeded mini-batches whose order depends on (seed, epoch) only, so a run can resume exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from boundgraph.errors import ConfigError, DataError


def derive_seed(*numbers: int) -> int:
    """One 63-bit seed from several non-negative numbers, without overlap between streams."""
    word = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return int(word) >> 1


@dataclass(frozen=True)
class Batches:
    """Shuffled batches of equal size; what is left over at the end of an epoch is dropped.

    Each epoch has its own order. With several processes every one of them gets its own
    `size` images of each global batch of `size · world`.

    Args:
        x: images `[N, ...]`, on any device.
        y: labels `[N]`, on the same device.
        size: images a batch (and process).
        seed: non-negative; equal seeds give equal orders.
        rank, world: this process and the number of processes.

    Raises:
        ConfigError: for a size below 1 or a negative seed.
        DataError: for no images, or fewer than one batch.
    """

    x: Tensor
    y: Tensor
    size: int
    seed: int = 0
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"the batch size is {self.size}; it must be at least 1")
        if self.seed < 0:
            raise ConfigError(f"the seed is {self.seed}; it must not be negative")
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"rank {self.rank} is not one of {self.world} processes")
        if len(self.x) == 0:
            raise DataError("the data is empty: there is nothing to make batches of")
        if len(self.x) != len(self.y):
            raise DataError(f"{len(self.x)} images but {len(self.y)} labels")
        if len(self) == 0:
            raise DataError(
                f"a batch of {self.size * self.world} is more than the {len(self.x)} images "
                "there are; choose a smaller batch"
            )

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.x) // (self.size * self.world)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch, in its own order, without the first `start`."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        order = torch.randperm(len(self.x), generator=generator).to(self.x.device)
        stride = self.size * self.world
        for first in range(start * stride, len(self) * stride, stride):
            at = order[first + self.rank * self.size :][: self.size]
            yield self.x[at], self.y[at]
