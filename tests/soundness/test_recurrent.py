"""LSTM, GRU and RNN layers and cells of every kind: captured, bounded, attacked, enclosed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.testing import check_model


class Layer(nn.Module):
    """A recurrent layer and a linear one on its last step."""

    def __init__(self, layer: nn.RNNBase, *, given: bool = False) -> None:
        super().__init__()
        self.layer, self.given = layer, given
        width = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
        self.last = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        time = 1 if self.layer.batch_first else 0
        steps = x if time else x.transpose(0, 1)
        state = self._state(x) if self.given else None
        return self.last(self.layer(steps, state)[0].select(time, -1))

    def _state(self, x: Tensor) -> Any:
        """A state that depends on the input."""
        layers = self.layer.num_layers * (2 if self.layer.bidirectional else 1)
        hidden = x.mean(1)[:, : self.layer.hidden_size].expand(layers, -1, -1)
        return (hidden, hidden * 0.5) if isinstance(self.layer, nn.LSTM) else hidden


class Cells(nn.Module):
    """A cell, step by step."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for time in range(x.shape[1]):
            state = self.cell(x[:, time], state)
        return state[0] if isinstance(state, tuple) else state


def _model(kind: str) -> nn.Module:
    name, *options = kind.split()
    if name.endswith("Cell"):
        extra = {"nonlinearity": "relu"} if "relu" in options else {}
        return Cells(getattr(nn, name)(4, 3, bias="plain" not in options, **extra))
    more: dict[str, Any] = {"proj_size": 2} if "projected" in options else {}
    if "relu" in options:
        more["nonlinearity"] = "relu"
    layer = getattr(nn, name)(
        4,
        4,
        num_layers=2 if "two" in options else 1,
        bidirectional="both" in options,
        batch_first="first" in options,
        bias="plain" not in options,
        **more,
    )
    return Layer(layer, given="given" in options)


METHODS = ("ibp", "crown-ibp", "symbolic", "crown")
KINDS = (
    "LSTM first", "LSTM two both first", "LSTM plain", "LSTM projected first", "LSTM given first",
    "GRU first", "GRU two both", "GRU plain first", "GRU given",
    "RNN first", "RNN relu two", "LSTMCell", "GRUCell plain", "GRUCell", "RNNCell relu",
)  # fmt: skip


def _case(kind: str, dtype: torch.dtype, batch: int) -> tuple[nn.Module, bg.LinfBall]:
    torch.manual_seed(len(kind))
    model = _model(kind).to(dtype).eval()
    return model, bg.LinfBall(torch.randn(batch, 3, 4, dtype=dtype), eps=0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_encloses(kind: str) -> None:
    at = KINDS.index(kind)
    dtype, batch = (torch.float32, torch.float64)[at % 2], (1, 3)[at // 2 % 2]
    model, region = _case(kind, dtype, batch)
    methods = ("ibp", "crown-ibp") if "both" in kind else METHODS
    check_model(model, region, methods=methods, points=16, dynamic_batch=True)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_encloses_many_points(kind: str, dtype: torch.dtype) -> None:
    model, region = _case(kind, dtype, 3)
    check_model(model, region, methods=METHODS, points=201, dynamic_batch=True)


@pytest.mark.parametrize("kind", ["LSTM first", "GRU first", "RNN first"])
def test_attacks_stay_inside_of_sound_bounds(kind: str) -> None:
    model, region = _case(kind, torch.float32, 2)
    weights = torch.randn(3, generator=torch.Generator().manual_seed(1))
    for method in ("ibp", "crown"):
        bounds = bg.bound(model, method=method, rounding="sound")(region)
        for sign in (1.0, -1.0):
            x = region.center.clone().requires_grad_()
            for _ in range(20):
                (sign * model(x) @ weights).sum().backward()
                with torch.no_grad():
                    step = x + 0.1 * x.grad.sign()
                    step = step.clamp(region.lower, region.upper)
                x = step.requires_grad_()
            found = model(x).double()
            assert bool((bounds.lower.double() <= found).all()), method
            assert bool((found <= bounds.upper.double()).all()), method


def test_a_state_of_zeros_costs_no_product() -> None:
    """The first step has neither a product with the state nor rounding of one."""
    model, region = _case("LSTM first", torch.float32, 2)
    program = bg.compile(model, region)
    # Two later steps, the input and the last layer.
    assert sum("linear" in node.op for node in program.ir.nodes) == 4


def test_crown_walks_back_once_for_the_gates_of_a_step() -> None:
    """The bounds of a gate follow from those of what is under its sigmoid."""
    model, region = _case("LSTM first", torch.float32, 2)
    program = bg.compile(model, region, method="crown")
    walks = [node for node in program.ir.nodes if node.op == "backward.assemble"]
    # Three parts of the first step, then all parts and a cell for each, and the output.
    assert len(walks) <= 3 + 1 + 2 * 3 + 1
