"""The two schedules of `symbolic` give one bound; a law on random programs."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from random_models import random_box, random_model
from schedules import assert_equal, both
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.errors import ConfigError
from boundgraph.testing import excess, sample_point


@pytest.mark.parametrize("seed", range(40))
def test_both_schedules_give_one_bound(seed: int) -> None:
    model, shapes = random_model(f"schedule/{seed}")
    rng = random.Random(seed)
    boxes = [random_box(shape, rng, 2) for shape in shapes]
    assert_equal(*both(model, *boxes))


class Selecting(nn.Module):
    """Both operands of a maximum have much in common, which no interval of them knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x) + self.first(x)
        return self.last(torch.maximum(a, b) + torch.minimum(F.relu(a), torch.tensor(0.3)))


class Attending(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        return torch.matmul(y, x.transpose(1, 2)) * torch.sigmoid(x[:, :, :1])


class Pooling(nn.Module):
    """max_pool and softmax have no symbolic rule: both schedules start anew from intervals."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 2, 3), nn.Linear(18, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        return torch.softmax(self.last(F.leaky_relu(x, 0.1).flatten(1)), 1)


def special(name: str) -> tuple[nn.Module, bg.Box]:
    torch.manual_seed(3)
    model, shape = {
        "selecting": (Selecting(), (3, 4)),
        "attending": (Attending(), (2, 3, 3)),
        "pooling": (Pooling(), (2, 1, 8, 8)),
    }[name]
    center = torch.randn(shape, dtype=torch.float64)
    return model.double().eval(), bg.Box(center - 0.2, center + 0.1)


@pytest.mark.parametrize("name", ["selecting", "attending", "pooling"])
def test_special_ops(name: str) -> None:
    model, box = special(name)
    forward, backward, allowed = both(model, box)
    assert_equal(forward, backward, allowed)
    generator = torch.Generator().manual_seed(0)
    for index in range(40):
        point = sample_point(box.interval(), generator, corner=index % 2 == 1)
        with torch.no_grad():
            assert not (excess(model(point), backward, allowed) > 0).any()


def test_balls_are_never_looser_backward() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    for ball in (bg.L2Ball, bg.L1Ball):
        region = ball(torch.randn(2, 5, dtype=torch.float64), 0.4)
        forward, backward, allowed = both(model, region)
        assert not (excess(backward, forward, allowed) > 0).any()


def test_specifications_gradients_and_portions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    region, labels = bg.LinfBall(torch.randn(4, 5, dtype=torch.float64), 0.2), torch.arange(4) % 3
    grads = []
    for schedule in ("forward", "backward"):
        options = {"method": "symbolic", "schedule": schedule, "spec": bg.Margin(3)}
        program = bg.compile(model, region, **options)
        model.zero_grad()
        program.run([region.interval()], labels).lower.sum().backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
        need = bg.plan_of(program, 1).memory
        small = bg.compile(model, region, max_memory=4 * need, **options)
        whole, parts = program(region, labels=labels), small(region, labels=labels)
        assert torch.allclose(whole.lower, parts.lower, rtol=0, atol=1e-12)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*grads, strict=True))


def test_the_cheaper_schedule_is_taken() -> None:
    """Many inputs and few outputs: backward. The other way round: forward."""
    wide = nn.Sequential(
        nn.Linear(900, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 2)
    )
    tall = nn.Sequential(nn.Linear(4, 90), nn.ReLU(), nn.Linear(90, 2000))
    for model, inputs, schedule in ((wide, 900, "backward"), (tall, 4, "forward")):
        region = bg.LinfBall(torch.zeros(8, inputs), 0.1)
        plan = bg.compile(model, region, method="symbolic").info.plan
        assert plan.schedule == schedule, str(plan)
        assert {option.name for option in plan.options} == {"forward", "backward"}
        assert plan.seconds == min(option.seconds for option in plan.options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "symbolic", "schedule": "sideways"}, "one of auto, forward, backward"),
        ({"method": "crown", "schedule": "backward"}, "is for method='symbolic'"),
        (
            {"method": "symbolic", "schedule": "backward", "keep_symbolic": True},
            "forms have no symbols",
        ),
    ],
)
def test_bad_schedules(options: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        bg.compile(nn.Linear(2, 2), bg.LinfBall(torch.zeros(1, 2), 0.1), **options)
