"""The batch size is dynamic where the model takes every batch size alike, and only there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from boundgraph.errors import CaptureError
from boundgraph.frontends import capture
from boundgraph.frontends._python import NotDynamic, on_sizes, unify
from boundgraph.ir.types import Dim
from boundgraph.runtime.interpret import interpret


def compute(model: nn.Module, captured: Any, *inputs: Tensor) -> Tensor:
    tensors = {**dict(model.named_parameters()), **captured.constants}
    with torch.no_grad():
        (found,) = interpret(captured.program, inputs, tensors.__getitem__)
    return found


class OneIsSpecial(nn.Module):
    """torch.export takes for granted that a dynamic size is not 1."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 1:
            return x * 2
        return x + 1


class ManyAreSpecial(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 64 else x + 1


class ScaledByBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (2 if x.size(0) < 2 else 1)


class SplitsBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0] // 2, 2, -1).sum(1)


class TakesFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:2] * 2


class PositionOfSample(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(x.shape[0]).unsqueeze(1)


class Capped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * min(x.shape[0], 3)


@pytest.mark.parametrize(
    "kind",
    [
        OneIsSpecial,
        ManyAreSpecial,
        ScaledByBatch,
        SplitsBatch,
        TakesFirst,
        PositionOfSample,
        Capped,
    ],
)
@pytest.mark.parametrize("batch", [1, 4])
def test_models_that_see_the_batch_size_are_static(kind: type[nn.Module], batch: int) -> None:
    if kind is SplitsBatch and batch == 1:
        return
    model, x = kind(), torch.rand(batch, 3)
    captured = capture(model, (x,))
    assert captured.program.inputs[0].type.shape == (batch, 3)
    torch.testing.assert_close(compute(model, captured, x), model(x))
    if kind is not TakesFirst:
        with pytest.raises(CaptureError, match="batch size"):
            capture(model, (x,), dynamic_batch=True)


@pytest.mark.parametrize("frontend", ["torch_fx", "torch_export"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_an_example_of_any_batch_size_will_do(frontend: str, batch: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    captured = capture(model, (torch.zeros(batch, 2, 2),), frontend=frontend)
    assert str(captured.program.outputs[0].type) == "f32[b, 3]"
    static = capture(model, (torch.zeros(batch, 2, 2),), frontend=frontend, dynamic_batch=False)
    assert str(static.program.outputs[0].type) == f"f32[{batch}, 3]"


def test_an_input_without_a_batch_is_static() -> None:
    model = nn.Linear(4, 3)
    captured = capture(model, (torch.zeros(4),))
    assert str(captured.program.outputs[0].type) == "f32[3]"


class Shifted(nn.Module):
    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return x + shift


def test_only_inputs_of_the_same_size_share_the_batch() -> None:
    program = capture(Shifted(), (torch.zeros(4, 3), torch.zeros(3))).program
    assert [str(value.type) for value in program.inputs] == ["f32[b, 3]", "f32[3]"]
    # Here the two sizes agree by accident: one symbol for both does not work.
    program = capture(Shifted(), (torch.zeros(3, 3), torch.zeros(3))).program
    assert [str(value.type) for value in program.inputs] == ["f32[3, 3]", "f32[3]"]


def test_sizes_must_be_linear() -> None:
    b = Dim("b")
    assert unify([10, 14, 200_006], (5, 7, 100_003)) == 2 * b
    for values in ([25, 49, 100_003**2], [5, 7, 100], [2, 3, 50_001]):
        with pytest.raises(NotDynamic):
            unify(values, (5, 7, 100_003))
    with pytest.raises(NotDynamic):
        unify([True, False, False], (5, 7, 100_003))


def test_comparisons_must_hold_for_every_batch_size() -> None:
    import operator

    b = Dim("b")
    assert on_sizes(operator.ge, operator.ge, (b, 0), {}) is True
    assert on_sizes(operator.eq, operator.eq, (b, b), {}) is True
    assert on_sizes(operator.eq, operator.eq, (b, 0), {}) is False
    for other in (1, 3):
        with pytest.raises(NotDynamic):
            on_sizes(operator.eq, operator.eq, (b, other), {})
    with pytest.raises(NotDynamic):
        on_sizes(min, min, (b, 3), {})


class Squeezes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.sum(1, keepdim=True) * 2).squeeze()


@pytest.mark.parametrize("frontend", ["torch_fx", "torch_export"])
def test_squeeze_would_drop_a_batch_of_one(frontend: str) -> None:
    model = Squeezes()
    for batch in (1, 3):
        x = torch.rand(batch, 4)
        captured = capture(model, (x,), frontend=frontend)
        assert captured.program.inputs[0].type.shape == (batch, 4)
        torch.testing.assert_close(compute(model, captured, x), model(x))
    last = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    assert str(capture(last, (torch.zeros(2, 4),)).program.outputs[0].type) == "f32[b]"
