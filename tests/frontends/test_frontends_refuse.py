"""What cannot be captured is refused with the user's line; nothing is dropped."""

from __future__ import annotations

import inspect
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boundgraph.errors import CaptureError, ConfigError, UnsupportedError
from boundgraph.frontends import capture
from boundgraph.runtime.interpret import interpret

FRONTENDS = ("auto", "torch_fx", "torch_export")


def line_of(kind: type, text: str) -> str:
    """`file:line` of the line of a class that holds a text."""
    lines, first = inspect.getsourcelines(kind)
    at = next(i for i, line in enumerate(lines) if text in line)
    return f"{__file__}:{first + at}"


class ByValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class ReadsValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * max(self.scale.item(), 1.0)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(("kind", "text"), [(ByValue, "if x.sum()"), (ReadsValue, ".item()")])
def test_control_flow_on_values(kind: type[nn.Module], text: str, frontend: str) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(kind(), (torch.zeros(2, 3),), frontend=frontend)
    message = str(caught.value)
    assert line_of(kind, text) in message
    assert "torch.where" in message
    if frontend == "auto":
        assert "torch_fx" in message and "torch_export" in message
    if frontend != "torch_fx":
        assert "value of a tensor" in message


class WritesView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        x.view(-1).add_(1)
        return x


class WritesMaybeCopy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = (x * 2).transpose(0, 1)
        z = y.reshape(-1)
        z.mul_(2)
        return y + 1


class WritesBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x + self.calls


class WritesTwice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        x.view(-1).add_(1)
        x.view(-1).relu_()
        return x


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (WritesView, ["x.view"]),
        (WritesMaybeCopy, ["z.mul_"]),
        (WritesBuffer, ["self.calls.add_"]),
        (WritesTwice, ["add_(1)", "relu_()"]),
    ],
)
@pytest.mark.parametrize("frontend", ["auto", "torch_export"])
def test_writes_that_cannot_be_followed(
    kind: type[nn.Module], texts: list[str], frontend: str
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        capture(kind(), (torch.zeros(2, 3),), frontend=frontend)
    assert len(caught.value.diagnostics) == len(texts)
    for text in texts:
        assert line_of(kind, text) in str(caught.value)


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.logcumsumexp(self.linear(x), 1)
        dead = torch.lgamma(x)
        del dead
        return x.renorm(2, 1, 1.0)


@pytest.mark.parametrize("frontend", ["torch_fx", "torch_export"])
def test_unknown_functions_become_calls_with_their_lines(frontend: str) -> None:
    program = capture(Unknown(), (torch.zeros(2, 3),), frontend=frontend).program
    calls = [node for node in program.nodes if node.op == "call"]
    assert [node.result.name for node in calls] == ["logcumsumexp", "renorm"]
    where = [node.span.where() for node in calls if node.span]
    assert where[0].startswith(line_of(Unknown, "logcumsumexp"))
    assert where[1].startswith(line_of(Unknown, "renorm"))


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class RandomConstant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(3)


@pytest.mark.parametrize("kind", [Random, RandomConstant])
def test_random_numbers_are_never_frozen(kind: type[nn.Module]) -> None:
    program = capture(kind(), (torch.zeros(2, 3),)).program
    refused = [node for node in program.nodes if node.op == "unsupported"]
    assert len(refused) == 1 and "random" in refused[0].attrs["message"]


@pytest.mark.parametrize("frontend", ["torch_fx", "torch_export"])
def test_training_dropout_is_refused(frontend: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    program = capture(model, (torch.zeros(2, 3),), frontend=frontend).program
    assert [node.op for node in program.nodes] == ["linear", "unsupported"]
    assert "model.eval()" in program.nodes[-1].attrs["help"]


class WrongShape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)


def test_shape_errors_name_line_module_and_shapes() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(WrongShape(), (torch.zeros(2, 10),))
    message = str(caught.value)
    assert line_of(WrongShape, "self.first(x)") in message
    assert "'first'" in message and "[2, 10]" in message and "[10, 784]" in message


def test_a_batch_norm_checks_the_rank_of_its_input() -> None:
    with pytest.raises(CaptureError, match="expected 4D input"):
        capture(nn.Sequential(nn.BatchNorm2d(3)).eval(), (torch.zeros(2, 3),))


class ReturnsNumber(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x, x.shape[1]


class ReturnsNone(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None


@pytest.mark.parametrize("kind", [ReturnsNumber, ReturnsNone])
def test_outputs_must_be_tensors(kind: type[nn.Module]) -> None:
    with pytest.raises(CaptureError, match="returns"):
        capture(kind(), (torch.zeros(2, 3),))


class Stale(nn.Module):
    """Reads running statistics that the call above has updated."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) + self.norm.running_mean


@pytest.mark.parametrize("frontend", ["torch_fx", "torch_export"])
def test_statistics_are_not_read_after_their_update(frontend: str) -> None:
    with pytest.raises(UnsupportedError, match="running_mean"):
        capture(Stale().train(), (torch.zeros(2, 3),), frontend=frontend)
    capture(Stale().eval(), (torch.zeros(2, 3),), frontend=frontend)


class Cast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.linear(x, torch.ones(3, 3))


def test_autocast_is_refused() -> None:
    with pytest.raises(CaptureError, match="autocast"):
        capture(Cast(), (torch.zeros(2, 3),))


def test_arguments_are_checked() -> None:
    model, x = nn.Linear(3, 3), torch.zeros(2, 3)
    with pytest.raises(ConfigError, match="frontend"):
        capture(model, (x,), frontend="onnx")
    with pytest.raises(ConfigError, match="tensors"):
        capture(model, (3.0,))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="example"):
        capture(model, ())
    with pytest.raises(ConfigError, match=r"nn\.Module"):
        capture(lambda x: x, (x,))  # type: ignore[arg-type]


class PythonRandom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * random.random()


class NumpyRandom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(np.random.rand())


@pytest.mark.parametrize("kind", [PythonRandom, NumpyRandom])
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_randomness_in_python_is_refused(kind: type[nn.Module], frontend: str) -> None:
    with pytest.raises(UnsupportedError, match="random"):
        capture(kind(), (torch.zeros(2, 3),), frontend=frontend)


def test_module_names_must_print() -> None:
    model = nn.Sequential()
    model.add_module("my layer", nn.Linear(3, 3))
    with pytest.raises(CaptureError, match="my layer"):
        capture(model, (torch.zeros(2, 3),))


class ByText(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if str(x.dtype) == "torch.float32" else x


class ByKind(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or not torch.is_tensor(x):
            return x
        parts = x.chunk(2, dim=1)
        x = parts[0] if isinstance(parts, tuple) else x
        if isinstance(x.shape, torch.Size) and isinstance(x.shape[1], int) and x.ndim == 2:
            x = x * 2
        if isinstance(x, nn.Parameter):
            x = x - 1
        return x + 1


class ByShapeText(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if str(tuple(x.shape[1:])) == "(4,)" else x


class InPlaceOnAttribute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        y = x.data
        y += 1
        return x


class AssignsAttribute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y.data = x * 3
        return y


@pytest.mark.parametrize("kind", [ByText, ByKind, ByShapeText, InPlaceOnAttribute])
def test_python_is_told_the_truth(kind: type[nn.Module]) -> None:
    model, x = kind(), torch.rand(2, 4)
    captured = capture(model, (x,))
    (found,) = interpret(captured.program, (x,), captured.constants.__getitem__)
    torch.testing.assert_close(found, model(x))


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_assigning_to_the_data_of_a_tensor_is_not_lost(frontend: str) -> None:
    with pytest.raises(CaptureError, match="data"):
        capture(AssignsAttribute(), (torch.rand(2, 4),), frontend=frontend)


class Maps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda row: self.weight @ row)(x)


def test_a_refused_vmap_leaves_torch_as_it_was() -> None:
    with pytest.raises(CaptureError, match=r"torch\.vmap") as caught:
        capture(Maps(), (torch.zeros(2, 3),))
    assert line_of(Maps, "torch.vmap") in str(caught.value)
    assert torch._C._functorch.peek_interpreter_stack() is None


def test_a_failed_export_says_nothing_on_the_side(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError):
        capture(ReadsValue(), (torch.zeros(2, 3),), frontend="torch_export")
    assert capfd.readouterr() == ("", "")
