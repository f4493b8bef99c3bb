"""Calls never see each other, and a changed model never gets the bounds of the old one."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.errors import ConfigError

X = bg.Box(torch.zeros(1, 2), torch.ones(1, 2))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.act, self.table = 2.0, nn.ReLU(), torch.ones(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) * self.scale + self.table


def test_bound_follows_a_changed_model() -> None:
    model = Scaled()
    bounds_of = bg.bound(model)
    assert bounds_of(X).upper.max() == 3.0
    model.scale = -3.0
    assert bounds_of(X).lower.min() == -2.0
    model.act = nn.Sigmoid()
    assert bounds_of(X).upper.max() == -0.5
    model.table = torch.full((2,), 100.0)
    assert bounds_of(X).upper.max() == 98.5
    model.table.add_(1.0)
    assert bounds_of(X).upper.max() == 99.5


def test_weights_are_read_live() -> None:
    model = nn.Linear(2, 1)
    program = bg.compile(model, X)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(0.0)
    assert program(X).upper.item() == 2.0
    model.load_state_dict({"weight": torch.full((1, 2), 3.0), "bias": torch.ones(1)})
    assert program(X).upper.item() == 7.0
    model.weight = nn.Parameter(torch.zeros(1, 2))
    assert program(X).upper.item() == 1.0
    model.to(torch.float64)
    wide = bg.Box(X.lower.double(), X.upper.double())
    assert program(wide).upper.dtype == torch.float64


def test_keyword_regions_follow_the_order_of_forward() -> None:
    class Difference(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return 2 * x - y

    y = bg.Box(torch.full((1, 2), 10.0), torch.full((1, 2), 11.0))
    model = Difference()
    expected = bg.bound(model)(X, y)
    for bounds in (bg.bound(model)(y=y, x=X), bg.compile(model, y=y, x=X)(X, y)):
        assert torch.equal(bounds.lower, expected.lower)
        assert torch.equal(bounds.upper, expected.upper)


def test_two_programs_on_one_model_and_interleaved_calls() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    programs = {method: bg.compile(model, X, method=method) for method in ("ibp", "mix", "crown")}
    other = bg.Box(torch.full((3, 2), -2.0), torch.full((3, 2), -1.0))
    first = {method: program(X) for method, program in programs.items()}
    for method, program in programs.items():
        program(other)
        assert torch.equal(program(X).lower, first[method].lower)


def test_threads_do_not_share_bounds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    program = bg.compile(model, X, method="mix")
    boxes = [bg.Box(torch.full((1, 2), float(i)), torch.full((1, 2), i + 0.5)) for i in range(4)]
    expected = [program(box).lower for box in boxes]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            if not torch.equal(program(boxes[index]).lower, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_are_independent(copier: object) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    program = bg.compile(model, X, method="mix", spec=bg.Margin(classes=2))
    labels = torch.tensor([1])
    before = program(X, labels=labels)
    twin = copier(program)  # type: ignore[operator]
    assert torch.equal(twin(X, labels=labels).lower, before.lower)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(twin(X, labels=labels).lower, before.lower)
    assert not torch.equal(program(X, labels=labels).lower, before.lower)


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5))
    model.eval()
    model[3].train()
    model[3].p = 0.0
    calls: list[int] = []
    handle = model[0].register_forward_hook(lambda *_: calls.append(1))
    state = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    for method in ("ibp", "mix", "crown"):
        bg.compile(model, X, method=method)(X)
    assert [module.training for module in model.modules()] == flags
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    program = bg.compile(model, X)
    program.train()
    program.eval()
    assert [module.training for module in model.modules()] == flags
    handle.remove()


def test_overflow_and_autocast_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(3e30)
        model[1].weight.fill_(3e30)
    with pytest.raises(bg.errors.NonFiniteError):
        bg.compile(model, X)(X)
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)
    with pytest.raises(bg.errors.NonFiniteError, match="weight"):
        bg.compile(model, X)(X)
    fine = bg.compile(nn.Linear(2, 2), X)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(bg.errors.ConfigError):
        fine(X)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize("frontend", ["torch_fx", "torch_export"])
@pytest.mark.parametrize("whole", [False, True])
def test_weights_that_are_no_longer_shared(frontend: str, whole: bool) -> None:
    model = Twice().eval()
    if whole:
        model.second = model.first
    else:
        model.second.weight = model.first.weight
    bounds_of, program = bg.bound(model, frontend=frontend), bg.compile(model, X, frontend=frontend)
    before = bounds_of(X)
    assert torch.equal(before.upper, program(X).upper)
    loaded = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(loaded)
    assert torch.equal(before.upper, program(X).upper)

    if whole:
        model.second = nn.Linear(2, 2)
    model.second.weight = nn.Parameter(torch.full((2, 2), 9.0))
    y, bounds = model(X.upper), bounds_of(X)
    assert bool(((bounds.lower - 1e-5 <= y) & (y <= bounds.upper + 1e-5)).all())
    with pytest.raises(ConfigError, match="one tensor when the program was compiled"):
        program(X)
