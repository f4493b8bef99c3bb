"""Estimated costs are those of small networks counted by hand, and what torch counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import boundgraph as bg
from boundgraph.planning import Cost, Planned, cheaper_schedule, fixed_plan
from boundgraph.planning.cost import Costs
from boundgraph.planning.plan import WINDOWS
from boundgraph.runtime.memory import peak_bytes

METHODS = ("ibp", "symbolic", "mix", "crown-ibp", "crown")


def networks() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    cnn = nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 5),
    )
    return {
        "mlp": (mlp, torch.zeros(2, 4)),
        "cnn": (cnn, torch.zeros(3, 1, 8, 8)),
        "curves": (
            nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 3)),
            torch.zeros(2, 4),
        ),
        "residual": (Residual(), torch.zeros(2, 4)),
    }


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.last(x + torch.relu(self.inner(x)))


def costs_of(name: str) -> Costs:
    model, x = networks()[name]
    program = bg.compile(model, bg.LinfBall(x, 0.1))
    source = program.records[0].program
    return Costs(source, [source.inputs[0].name], len(x))


def test_a_linear_network_by_hand() -> None:
    """4 → 8 → 6 → 3 with batch 2; a product and a sum are two operations."""
    costs = costs_of("mlp")
    first, _, second, _, last = costs.program.nodes
    assert costs.products(first, 2) == 2 * 2 * 4 * 8
    # Centre and radius, and their elements in and out, twice each.
    assert costs.interval(second).flops == 2 * (2 * 2 * 8 * 6)
    assert costs.interval(second).traffic == 2 * (2 * 8 + 2 * 6) * 4 * 2
    # Symbols: 4 inputs, then 8 and 6 units.
    symbols = costs.symbols()
    assert [symbols[str(v)] for v in (second.result, last.result)] == [4 + 8, 4 + 8 + 6]
    # 6 rows, shared by the samples as far as the relu; behind it, 12 rows of 2 samples:
    # one sum over 8 units for the chords' offsets, the bias and the first layer.
    assert costs.walk(second.result).flops == (
        6 * 2 * 8 * 6 + 12 * 2 * (2 * 8) + 12 * 2 * (2 * 4 * 8)
    )
    half = costs.walk(second.result, lower_only=True).flops
    assert half == 6 * 2 * 8 * 6 + 6 * 2 * (2 * 8) + 6 * 2 * (2 * 4 * 8)


def test_a_convolution_by_hand() -> None:
    """3×3, stride 2, 1 → 2 channels, 8×8 → 4×4, batch 3."""
    costs = costs_of("cnn")
    first = costs.program.nodes[0]
    assert costs.products(first, 3) == 3 * (2 * 4 * 4) * 9 * 2
    assert costs.interval(first).flops == 2 * 3 * 32 * 9 * 2
    assert costs.rows(first.result) == 32


@pytest.mark.parametrize("name", networks())
@pytest.mark.parametrize("method", METHODS)
def test_products_are_those_that_torch_counts(name: str, method: str) -> None:
    model, x = networks()[name]
    region = bg.LinfBall(x, 0.1)
    program = bg.compile(model, region, method=method)
    with FlopCounterMode(display=False) as counter:
        program.run([region.interval()])
    plan, counted = bg.plan_of(program, len(x)), counter.get_total_flops()
    if plan.schedule == WINDOWS:
        # Products of kernels with kernels, and sums over windows, are not reckoned with.
        assert counted / 3 <= plan.cost.flops <= counted
    else:
        assert plan.cost.flops == counted


@pytest.mark.parametrize("name", networks())
@pytest.mark.parametrize("schedule", ["forward", "backward"])
def test_products_of_both_schedules(name: str, schedule: str) -> None:
    model, x = networks()[name]
    region = bg.LinfBall(x, 0.1)
    options = {"method": "symbolic", "schedule": schedule}
    program = bg.compile(model, region, **options)
    with FlopCounterMode(display=False) as counter:
        program.run([region.interval()])
    plan = cheaper_schedule(
        program.records[0].program, Planned((program.ir.inputs[0].name,), batch=len(x))
    )
    by_name = {option.name: option.flops for option in plan.options}
    assert by_name[schedule] == counter.get_total_flops()


@pytest.mark.parametrize("name", networks())
def test_memory_is_about_what_the_runtime_reckons_with(name: str) -> None:
    model, x = networks()[name]
    for method in ("ibp", "mix"):
        program = bg.compile(model, bg.LinfBall(x, 0.1), method=method)
        ratio = bg.plan_of(program, 1).memory / peak_bytes(program.ir, 1)
        assert 0.8 <= ratio <= 1.25, (method, ratio)


def test_costs_add_up() -> None:
    assert Cost(1, 2, 3) + Cost(10, 20, 30) == Cost(11, 22, 33)


def test_a_diamond_is_walked_once() -> None:
    """Two paths to one value are two forms of it, and one from there on."""
    costs = costs_of("residual")
    *_, total, _ = costs.program.nodes
    assert total.op == "add"
    rows, first, inner = 6, 2 * 4 * 6, 2 * 6 * 6
    walked = costs.walk(total.result).flops
    # Behind both relus there are 12 rows of 2 samples; the offsets of two relus, and two layers.
    assert walked == 2 * 2 * rows * (2 * 6 + inner + 2 * 6 + first)


def test_fixed_methods_have_plans() -> None:
    model, x = networks()["mlp"]
    source = bg.compile(model, bg.LinfBall(x, 0.1)).records[0].program
    what = Planned((source.inputs[0].name,), batch=2)
    chosen = {m: fixed_plan(source, what, m).schedule for m in METHODS}
    assert chosen == {
        "ibp": "interval",
        "symbolic": "forward",
        "mix": "forward",
        "crown-ibp": "backward",
        "crown": "backward",
    }
    assert fixed_plan(source, what, "crown").tightened == ("linear_1",)
    assert fixed_plan(source, what, "crown-ibp").tightened == ()
