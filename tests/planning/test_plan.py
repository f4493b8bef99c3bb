"""Plans: within budgets, monotone in them, deterministic, and bounds that hold."""

from __future__ import annotations

import random

import pytest
import torch
from random_models import random_box, random_model
from torch import nn

import boundgraph as bg
from boundgraph.domains import Interval
from boundgraph.errors import ConfigError
from boundgraph.planning import Budget, Plan, Planned, make_plan
from boundgraph.testing import check_model, excess, model_allowance, sample_point

# Between intervals alone and everything: nominal seconds of small networks.
SECONDS = (1e-9, 3e-4, 1e-3, 1.0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 30),
        nn.ReLU(),
        nn.Linear(30, 20),
        nn.ReLU(),
        nn.Linear(20, 20),
        nn.ReLU(),
        nn.Linear(20, 3),
    )


REGION = bg.LinfBall(torch.zeros(2, 4), 0.1)


def plan(**options: float) -> Plan:
    found = bg.compile(network(), REGION, method="auto", **options).info.plan
    assert isinstance(found, Plan)
    return found


GOLDEN = """\
plan: backward, batch 2, about 1.17 ms of 10 s, 2.58 KiB of 1 GiB
  value      read by  bounds    rows    flop  traffic
  %linear    relu     interval    30       0        0
  %linear_1  relu     backward    20   48000   130880
  %linear_2  relu     backward    20  139200   225280
  %linear_3  return   backward     3   28920    46824
  intervals                             9440     9184
considered:
  interval: 284 µs, 960 B
  forward: 610 µs, 22.5 KiB
  backward: 623 µs, 2.58 KiB
  backward, all values: 1.17 ms, 2.58 KiB"""


def test_the_text_of_a_plan() -> None:
    assert str(plan()) == GOLDEN


def test_a_plan_is_deterministic_and_does_not_read_weights() -> None:
    other = network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(100.0)
    assert bg.compile(other, REGION, method="auto").info.plan == plan() == plan()


def test_the_choice_follows_the_time() -> None:
    chosen = [plan(max_time=seconds) for seconds in (1e-6, 4e-4, 6.15e-4, 8e-4, 1.0)]
    schedules = [found.schedule for found in chosen]
    # Where outputs can be walked from, the forward schedule is no choice without that.
    assert schedules == ["interval", "interval", "forward", "backward", "backward"]
    assert all(found.seconds <= found.budget.seconds for found in chosen[1:] if found.budget)


def test_the_choice_follows_the_memory() -> None:
    assert plan(max_memory=1 << 20).schedule == "backward"
    small = plan(max_memory=2_000, max_time=1.0)
    assert (small.schedule, small.memory <= 2_000) == ("interval", True)
    # No room for symbols, but for rows; no time for all of those.
    some = plan(max_memory=20_000, max_time=2e-3)
    assert some.schedule == "backward"
    assert len(some.tightened) == 1
    assert some.seconds <= 2e-3


def test_more_time_keeps_the_bounds_that_less_time_bought() -> None:
    source = bg.compile(network(), REGION).records[0].program
    what = Planned((source.inputs[0].name,), batch=2)
    taken: set[str] = set()
    for seconds in torch.logspace(-4, -2, 40).tolist():
        found = make_plan(source, what, Budget(seconds, 10_000))
        assert found.seconds <= seconds or found.schedule == "interval"
        assert taken <= set(found.tightened)
        taken = set(found.tightened)
    assert taken == {"linear_1", "linear_2"}


def test_a_planned_budget_is_enough_for_a_call() -> None:
    """What the planner takes for the smallest portion, the runtime can run in."""
    for seed in range(8):
        model, shapes = random_model(f"memory/{seed}")
        boxes = [random_box(shape, random.Random(seed), 2) for shape in shapes]
        need = bg.compile(model, *boxes, method="auto").info.plan.memory
        program = bg.compile(model, *boxes, method="auto", max_memory=2 * need)
        free = bg.compile(model, *boxes, method="auto")
        assert program.info.plan.schedule == free.info.plan.schedule
        with torch.no_grad():
            assert torch.allclose(program(*boxes).lower, free(*boxes).lower)


@pytest.mark.parametrize("seed", range(12))
def test_bounds_hold_and_are_never_looser_than_ibp(seed: int) -> None:
    model, shapes = random_model(f"plan/{seed}")
    rng = random.Random(seed)
    boxes = [random_box(shape, rng, 2) for shape in shapes]
    schedules = set()
    for seconds in SECONDS:
        for memory in (5_000, 1 << 30):
            options = {"max_time": seconds, "max_memory": memory}
            program = bg.compile(model, *boxes, method="auto", **options)
            schedules.add((program.info.plan.schedule, program.info.plan.tightened))
    for seconds in SECONDS[1:]:
        check_planned(model, boxes, seconds, seed)
    assert len(schedules) > 1


def check_planned(model: nn.Module, boxes: list[bg.Box], seconds: float, seed: int) -> None:
    program = bg.compile(model, *boxes, method="auto", max_time=seconds)
    plain = bg.compile(model, *boxes)
    with torch.no_grad():
        # The smallest portion may take a while longer, so that no budget is in the way.
        found = program.run_within([b.interval() for b in boxes])
        loose = plain(*boxes)
    (allowed,) = model_allowance(model, *boxes)
    crossed = excess(found, Interval(loose.lower, loose.upper), 8.0 * allowed)
    assert not (crossed > 0).any(), program.info.plan
    for index in range(6):
        generator = torch.Generator().manual_seed(100 * seed + index)
        point = [torch.where(torch.rand(b.lower.shape, generator=generator) < 0.5, b.lower, b.upper)
                 for b in boxes]  # fmt: skip
        with torch.no_grad():
            assert not (excess(model(*point), found, 8.0 * allowed) > 0).any(), program.info.plan


def test_the_default_plan_goes_through_the_usual_check() -> None:
    for seed in range(4):
        model, shapes = random_model(f"auto/{seed}")
        boxes = [random_box(shape, random.Random(seed), 2) for shape in shapes]
        check_model(model, *boxes, methods=("ibp", "auto"), points=9)


def test_where_samples_mix_there_are_intervals() -> None:
    class Mixing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x - x.mean(0, keepdim=True))

    box = bg.Box(torch.zeros(3, 4), torch.ones(3, 4))
    program = bg.compile(Mixing(), box, method="auto")
    assert program.info.plan.schedule == "interval"
    assert torch.equal(program(box).upper, bg.compile(Mixing(), box)(box).upper)


def test_specifications_and_sound_rounding() -> None:
    model = network().double()
    center = torch.rand(2, 4, dtype=torch.float64)
    region, labels = bg.LinfBall(center, 0.1), torch.tensor([0, 2])
    for rounding in ("nearest", "sound"):
        options = {"spec": bg.Margin(3), "rounding": rounding}
        auto = bg.compile(model, region, method="auto", **options)(region, labels=labels)
        ibp = bg.compile(model, region, method="ibp", **options)(region, labels=labels)
        assert (auto.lower >= ibp.lower - 1e-12).all()
        assert (auto.lower > ibp.lower).any()
    assert (
        bg.compile(model, region, method="auto", rounding="sound").info.plan.schedule != "forward"
    )


def test_balls() -> None:
    model = network().double()
    ball = bg.L2Ball(torch.zeros(2, 4, dtype=torch.float64), 0.3)
    for seconds in SECONDS[1:]:
        program = bg.compile(model, ball, method="auto", max_time=seconds)
        found, loose = program(ball), bg.compile(model, ball)(ball)
        assert (found.lower >= loose.lower - 1e-12).all()


def test_evaluate_and_verify_take_auto() -> None:
    model = network().eval()
    x = torch.rand(8, 4)
    labels = model(x).argmax(1)
    found = bg.evaluate(model, (x, labels), 0.01, method="auto", attack_steps=2)
    assert found.certified_correct > 0
    verdict = bg.verify(
        model, bg.LinfBall(x[:1], 0.001), bg.Margin(3), labels=labels[:1], methods=("auto",)
    )
    assert verdict is not None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "auto", "max_time": 0.0}, "positive number of seconds"),
        ({"method": "auto", "max_time": -1.0}, "positive number of seconds"),
        ({"method": "auto", "max_time": float("nan")}, "positive number of seconds"),
        ({"method": "crown", "max_time": 1.0}, "nothing to choose"),
    ],
)
def test_bad_budgets(options: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        bg.compile(network(), REGION, **options)  # type: ignore[arg-type]


def test_loaded_programs_have_no_plan(tmp_path) -> None:
    program = bg.compile(network(), REGION, method="auto")
    program.save(tmp_path / "net.bgp")
    loaded = bg.load(tmp_path / "net.bgp")
    assert torch.equal(loaded(REGION).lower, program(REGION).lower)
    with pytest.raises(ConfigError, match="no record"):
        bg.plan_of(loaded)


def test_a_forward_plan_is_never_looser_than_crown_ibp() -> None:
    """Backward bounds of the outputs stand beside it, wherever there is room for `crown-ibp`."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 3),
    ).double()  # fmt: skip
    x = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    tighter = 0
    for eps in (0.01, 0.1, 0.4):
        region = bg.LinfBall(x, eps)
        program = bg.compile(model, region, method="auto", max_time=3e-3)
        found = program.info.plan
        assert found.schedule == "forward on windows"
        assert found.tasks[-1].choice == "backward"
        assert found.cost.flops > 0
        best = program(region)
        forward = bg.compile(model, region, method="mix", schedule="windows")(region)
        crown_ibp = bg.compile(model, region, method="crown-ibp")(region)
        (moved,) = model_allowance(model, region)
        for part in (forward, crown_ibp):
            # The same nodes on the same numbers, up to what merging them may reorder.
            assert bool((best.lower >= part.lower - 4.0 * moved).all())
            assert bool((best.upper <= part.upper + 4.0 * moved).all())
        tighter += bool((crown_ibp.lower > forward.lower + 4.0 * moved).any())
        tighter += bool((crown_ibp.lower < forward.lower - 4.0 * moved).any())
        generator = torch.Generator().manual_seed(0)
        for index in range(20):
            point = sample_point(region.interval(), generator, corner=index % 2 == 1)
            bounds = Interval(best.lower.detach(), best.upper.detach())
            assert not (excess(model(point).detach(), bounds, 4.0 * moved) > 0).any()
    assert tighter > 1
