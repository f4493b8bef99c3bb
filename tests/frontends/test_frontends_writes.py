"""Random programs full of views and writes are captured right or refused, never wrong."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boundgraph.errors import UnsupportedError
from boundgraph.frontends import capture
from boundgraph.runtime.interpret import interpret

# Names are taken from a list of live tensors, so that writes meet other names of the memory.
VIEWS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x.view(x.shape),
    lambda x: x.reshape(x.size(0), -1),
    lambda x: x.transpose(0, 1).transpose(0, 1),
    lambda x: x.contiguous(),
    lambda x: x.unsqueeze(1).squeeze(1),
    lambda x: x.clone(),
    lambda x: x.detach(),
    lambda x: torch.cat(x.chunk(2, dim=1), dim=1),
    lambda x: x.flatten(1),
    lambda x: F.dropout(x, training=False),
    lambda x: x[:, 1:2].expand(-1, 4),
    lambda x: x.split(2, dim=1)[1].repeat_interleave(2, dim=1),
)


def _add_one(x: Tensor) -> Tensor:
    x += 1
    return x


def _halve(x: Tensor) -> Tensor:
    x[:, 0:2].mul_(0.5)
    return x


WRITES: tuple[Callable[[Tensor], Tensor], ...] = (
    _add_one,
    _halve,
    lambda x: F.relu(x, inplace=True),
    lambda x: x.mul_(2),
    lambda x: x.tanh_(),
    lambda x: x.sub_(x.mean(1, keepdim=True)),
)


class Scramble(nn.Module):
    """A fixed random sequence of calls."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = random.Random(seed)
        self.steps = [
            (
                rng.choice(WRITES) if rng.random() < 0.4 else rng.choice(VIEWS),
                rng.randrange(8),
                rng.randrange(8),
            )
            for _ in range(rng.randint(2, 6))
        ]
        self.kept = [rng.randrange(8) for _ in range(3)]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        live = [x * 1.5, x + 0.25]
        for fn, source, place in self.steps:
            made = fn(live[source % len(live)])
            if place < 6:
                live.append(made)
            else:
                live[place % len(live)] = made
        return tuple(live[i % len(live)] * 1 for i in self.kept)


def outcome(seed: int, frontend: str) -> bool:
    """Whether the program was captured; it must then be right."""
    model = Scramble(seed)
    try:
        captured = capture(model, (torch.zeros(3, 4),), frontend=frontend)
    except UnsupportedError:
        return False
    for batch in (1, 3):
        x = torch.linspace(-1, 1, 4 * batch).view(batch, 4)
        expected = model(x.clone())
        found = interpret(captured.program, (x,), captured.constants.__getitem__)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    return True


@pytest.mark.parametrize("block", range(3))
def test_symbolic_tracing_follows_writes(block: int) -> None:
    captured = sum(outcome(seed, "torch_fx") for seed in range(40 * block, 40 * block + 40))
    # Refusing everything would also be right, and useless.
    assert captured > 8


def test_exporting_follows_writes() -> None:
    assert sum(outcome(seed, "torch_export") for seed in range(12)) > 2
