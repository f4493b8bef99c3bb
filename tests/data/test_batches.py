"""The order of batches is a function of (seed, epoch)."""

from __future__ import annotations

import pytest
import torch

from boundgraph.data import Batches, derive_seed
from boundgraph.errors import ConfigError, DataError

X, Y = torch.arange(10.0).unsqueeze(1), torch.arange(10)


def labels(batches: Batches, epoch: int) -> list[list[int]]:
    return [y.tolist() for _, y in batches.epoch(epoch)]


def test_epochs_can_be_replayed_in_any_order():
    first = Batches(X, Y, 3, seed=1)
    later = Batches(X, Y, 3, seed=1)
    order = [labels(first, epoch) for epoch in range(4)]
    assert labels(later, 3) == order[3]
    assert labels(later, 1) == order[1]
    assert order[0] != order[1]
    assert labels(Batches(X, Y, 3, seed=2), 0) != order[0]


def test_an_epoch_can_be_entered_in_the_middle():
    batches = Batches(X, Y, 3, seed=1)
    assert [y.tolist() for _, y in batches.epoch(2, start=1)] == labels(batches, 2)[1:]
    assert list(batches.epoch(2, start=3)) == []


def test_global_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    labels(Batches(X, Y, 3), 0)
    assert torch.equal(before, torch.get_rng_state())


def test_batches_are_full_and_disjoint():
    batches = Batches(X, Y, 3)
    found = labels(batches, 0)
    assert len(found) == len(batches) == 3
    assert [len(batch) for batch in found] == [3, 3, 3]
    assert len({label for batch in found for label in batch}) == 9
    for x, y in batches.epoch(5):
        assert torch.equal(x[:, 0].long(), y)


def test_processes_share_the_global_batch():
    parts = [labels(Batches(X, Y, 2, seed=3, rank=rank, world=2), 1) for rank in (0, 1)]
    whole = labels(Batches(X, Y, 4, seed=3), 1)
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_seeds_do_not_overlap():
    seeds = {derive_seed(seed, epoch) for seed in range(30) for epoch in range(30)}
    assert len(seeds) == 900
    assert derive_seed(1, 2) != derive_seed(2, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": 0}, ConfigError, "batch size is 0"),
        ({"size": 11}, DataError, "a batch of 11 is more than the 10 images"),
        ({"size": 1, "seed": -1}, ConfigError, "seed is -1"),
        ({"size": 1, "rank": 2, "world": 2}, ConfigError, "rank 2"),
        ({"size": 1, "x": X[:0], "y": Y[:0]}, DataError, "empty"),
        ({"size": 1, "y": Y[:4]}, DataError, "10 images but 4 labels"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Batches(**({"x": X, "y": Y} | arguments))
