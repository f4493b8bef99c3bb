"""Lines that several walks need are recorded once."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

import boundgraph as bg
from boundgraph.ops._sharing import shared, sharing


def test_the_very_operands_are_needed() -> None:
    calls: list[object] = []

    @shared
    def rule(x: torch.Tensor, slope: float = 1.0) -> torch.Tensor:
        calls.append(x)
        return x * slope

    x = torch.ones(2)
    with sharing():
        assert rule(x) is rule(x)
        assert rule(x) is not rule(x.clone())
        # Equal to Python, not to torch.
        assert rule(x, slope=1) is not rule(x, slope=True)
    assert len(calls) == 4
    assert rule(x) is not rule(x)


def test_ids_are_not_given_away_again() -> None:
    @shared
    def rule(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    with sharing():
        for value in range(100):
            assert float(rule(torch.tensor(float(value)))) == value + 1


def test_emission_records_few_calls_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    create = fx.Graph.create_node

    def counted(self: fx.Graph, *args: object, **kwargs: object) -> fx.Node:
        nonlocal made
        made += 1
        return create(self, *args, **kwargs)  # type: ignore[arg-type]

    layers = [layer for _ in range(8) for layer in (nn.Linear(3, 3), nn.Tanh())]
    model = nn.Sequential(*layers).eval()
    region = bg.LinfBall(torch.zeros(1, 3), eps=0.1)
    monkeypatch.setattr(fx.Graph, "create_node", counted)
    program = bg.compile(model, region, method="crown")
    assert made < 2 * len(program.graph_module.graph.nodes)
