"""Capture leaves the model and the random state as they were, and honours hooks."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from boundgraph.errors import BoundGraphError
from boundgraph.frontends import capture
from boundgraph.runtime.interpret import interpret


class Stateful(nn.Module):
    """Counts its calls, keeps its last output, and has everything that capture may disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, bias=False), nn.BatchNorm2d(2)
        self.instance = nn.InstanceNorm2d(2, track_running_stats=True)
        self.drop = nn.Dropout(0.0)
        self.calls, self.history, self.cache = 0, [1], {"a": 1}
        self.plain = torch.ones(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.history.append(self.calls)
        self.last = x
        self.cache["b"] = x
        return self.drop(self.norm(self.conv(x))) * self.plain


class Fails(Stateful):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if x.sum() > 0 else -x


def state(model: nn.Module) -> dict[str, Any]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {
        "tensors": {name: (id(t), t.detach().clone(), t.requires_grad) for name, t in tensors},
        "versions": {name: t._version for name, t in tensors},
        "grads": {name: id(p.grad) for name, p in model.named_parameters()},
        "training": [module.training for module in model.modules()],
        "attributes": [
            {k: copy.copy(v) for k, v in module.__dict__.items() if not isinstance(v, Tensor)}
            for module in model.modules()
        ],
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, (identity, tensor, grad) in before["tensors"].items():
        now, same, now_grad = after["tensors"][name]
        assert (identity, grad) == (now, now_grad) and torch.equal(tensor, same)
    for key in ("versions", "grads", "training"):
        assert before[key] == after[key]
    for first, second in zip(before["attributes"], after["attributes"], strict=True):
        assert first.keys() == second.keys()
        for name in first:
            if name not in ("_parameters", "_buffers"):
                assert first[name] == second[name], name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frontend", ["auto", "torch_fx", "torch_export"])
@pytest.mark.parametrize("kind", [Stateful, Fails])
def test_nothing_changes(kind: type[nn.Module], frontend: str, training: bool) -> None:
    model = kind().train(training)
    model.norm.weight.requires_grad_(False)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    model.drop.train()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    before = state(model)
    torch.manual_seed(3)
    generators = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    try:
        captured = capture(model, (torch.zeros(4, 2, 5, 5),), frontend=frontend)
    except BoundGraphError:
        assert kind is Fails
    else:
        assert kind is Stateful and captured.root is model
    assert_same(before, state(model))
    assert torch.equal(generators[0], torch.get_rng_state())
    assert generators[1] == random.getstate()
    assert (generators[2] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("frontend", ["torch_fx", "torch_export"])
def test_batch_norm_in_training_mode(frontend: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU())
    program = capture(model, (torch.zeros(4, 3),), frontend=frontend).program
    assert [node.op for node in program.nodes] == ["linear", "batch_norm_train", "relu"]
    assert int(model[1].num_batches_tracked) == 0


def rescale(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 3


def shift(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0] + 1,)


@pytest.mark.parametrize("frontend", ["torch_fx", "torch_export"])
@pytest.mark.parametrize("where", ["root", "linear", "norm"])
def test_hooks_are_part_of_the_model(where: str, frontend: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    hooked = {"root": model, "linear": model[0], "norm": model[1]}[where]
    hooked.register_forward_hook(rescale)
    hooked.register_forward_pre_hook(shift)
    captured = capture(model, (torch.zeros(4, 3),), frontend=frontend)
    x = torch.rand(2, 3)
    with torch.no_grad():
        parameters = dict((*model.named_parameters(), *model.named_buffers()))
        (found,) = interpret(captured.program, (x,), parameters.__getitem__)
        torch.testing.assert_close(found, model(x))


def test_no_parameter_is_read() -> None:
    """A model whose parameters have no data can be captured, of any dtype."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 3, dtype=torch.bfloat16), nn.BatchNorm1d(3), nn.ReLU())
    model[1].bfloat16()
    for frontend in ("torch_fx", "torch_export"):
        example = torch.zeros(2, 3, dtype=torch.bfloat16, device="meta")
        program = capture(model.eval(), (example,), frontend=frontend).program
        assert str(program.outputs[0].type) == "bf16[b, 3]"


class ComputesWithValues(nn.Module):
    """Python reads parameters behind the tracer's back."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x * sum(p.square().sum() for p in self.parameters())


def test_parameters_stay_parameters() -> None:
    model = ComputesWithValues()
    captured = capture(model, (torch.zeros(2, 3),))
    assert captured.frontend == "torch_export"
    assert {p.name for p in captured.program.params} == {"linear.weight", "linear.bias"}
    x = torch.rand(2, 3)
    with torch.no_grad():
        model.linear.weight.mul_(2)
        (found,) = interpret(captured.program, (x,), dict(model.named_parameters()).__getitem__)
        torch.testing.assert_close(found, model(x))


def test_inference_mode_and_gradient_mode_do_not_matter() -> None:
    model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)), torch.zeros(2, 3)
    expected = str(capture(model, (x,)).program)
    for context in (torch.inference_mode(), torch.no_grad()):
        with context:
            for frontend in ("torch_fx", "torch_export"):
                assert str(capture(model, (x,), frontend=frontend).program) == expected
