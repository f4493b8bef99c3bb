"""Lines that several walks need are recorded once."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

import boundgraph as bg
from boundgraph.ops import get
from boundgraph.ops._sharing import shared, sharing
from boundgraph.ops._spec import OpSpec
from boundgraph.runtime import shared_lines
from boundgraph.runtime.rows import Usage


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


def test_portions_of_a_walk_share_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU()).eval()
    model.append(nn.Linear(64, 500))
    region = bg.LinfBall(torch.zeros(4, 3), eps=0.1)
    program = bg.compile(model, region, method="crown-ibp")
    asked: list[str] = []

    def counting(op: str) -> OpSpec | None:
        asked.append(op)
        return get(op)

    inputs = program.arguments((region.interval(),))
    # Looked up where lines are made.
    monkeypatch.setattr(shared_lines, "get", counting)
    usage = Usage()
    with torch.no_grad():
        bounds = program.run_within(inputs, max_memory=1 << 20, usage=usage)
    assert max(usage.chunk.values()) < 100
    whole = program.run(inputs)
    assert torch.allclose(bounds.lower, whole.lower) and torch.allclose(bounds.upper, whole.upper)
    made = [op for op in asked if op == "silu"]
    assert len(made) == 4  # the key of each op once, and its lines
