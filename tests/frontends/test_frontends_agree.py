"""Both frontends give the same program, and the program computes what the model does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from boundgraph.frontends import Capture, capture
from boundgraph.runtime.interpret import interpret


class Spellings(nn.Module):
    """Modules, functions, methods, operators and in-place forms of the same things."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)) + F.relu(self.second(self.first(x)))
        x = x.tanh() * 2 - torch.sigmoid(x) / 3
        x += 1
        x = x.neg().mul_(0.5)
        return F.leaky_relu(x, 0.2, inplace=True) - x.mean(1, keepdim=True)


class Padded(nn.Module):
    """A convolution for each padding mode."""

    def __init__(self) -> None:
        super().__init__()
        modes = ("zeros", "reflect", "replicate", "circular")
        self.convs = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1, padding_mode=m) for m in modes)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x), inplace=True)
        return F.pad(x, (1, 0, 0, 1), value=0.5).flatten(1)


class Residual(nn.Module):
    """In-place operations on a value that has other readers only before them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y += x
        y = self.relu(y)
        return F.max_pool2d(F.avg_pool2d(y, 2), 2).view(y.size(0), -1)


class Reused(nn.Module):
    """One module called twice, and two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(torch.relu(self.first(x))))


class TwoInputs(nn.Module):
    """Two inputs, one by keyword, and outputs in nested containers."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor, *, other: Tensor) -> dict[str, object]:
        a, b = self.left(x), self.right(other)
        return {"sum": a + b, "both": (torch.cat([a, b], dim=1), [torch.stack((a, b), 1)])}


class Pieces(nn.Module):
    """chunk, split, unbind, indexing, unpacked shapes."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, width = x.shape
        first, second = x.chunk(2, dim=1)
        a, b, c = torch.split(first * second, [1, 2, 1], dim=1)
        folded = x.view(batch, 2, width // 2)
        top, bottom = folded.unbind(1)
        return a + c, b[:, 1:], top - bottom[..., None].squeeze(2), folded.transpose(1, 2)[:, 0]


class Buffers(nn.Module):
    """Buffers, a plain tensor attribute, literals and factories."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]))
        self.scale = torch.tensor(2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean[None, :]) * self.scale + torch.tensor([1.0, 2.0, 3.0])
        return x + torch.ones_like(x) * 0.5 + x.new_zeros(x.size(0), 1)


class Aliased(nn.Module):
    """Copies stay what they were; names of one tensor change together."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x * 2
        copy, name = x.clone(), x
        x.add_(1)
        copy.mul_(3)
        return x, copy, name + 0.5


class ReturnsPieces(nn.Module):
    def forward(self, x: Tensor) -> object:
        return x.chunk(2, dim=1), {"relu": torch.relu(x)}


def mlp() -> nn.Module:
    layers = (nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))
    return nn.Sequential(*layers)


def image(*shape: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda batch: (torch.rand(batch, *shape),)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]] = {
    "mlp": (mlp, image(2, 3)),
    "spellings": (Spellings, image(6)),
    "padded": (Padded, image(2, 5, 5)),
    "residual": (Residual, image(2, 8, 8)),
    "reused": (Reused, image(5)),
    "pieces": (Pieces, image(8)),
    "buffers": (Buffers, image(3)),
    "aliased": (Aliased, image(4)),
    "returns_pieces": (ReturnsPieces, image(4)),
    "two_inputs": (TwoInputs, lambda batch: (torch.rand(batch, 4), torch.rand(batch, 4))),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 3, stride=2), nn.AdaptiveAvgPool2d(1)),
        image(2, 4, 4),
    ),
    "unbatched_conv": (lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU()), image(2, 7)),
}


def run(captured: Capture, inputs: tuple[Tensor, ...]) -> object:
    def lookup(path: str) -> Tensor:
        if path in captured.constants:
            return captured.constants[path]
        found = captured.root
        for part in path.split("."):
            found = getattr(found, part)
        return found  # type: ignore[return-value]

    outputs = interpret(captured.program, inputs, lookup)
    return pytree.tree_unflatten(list(outputs), captured.output_tree)


def call(name: str, model: nn.Module, inputs: tuple[Tensor, ...]) -> object:
    given = tuple(item.clone() for item in inputs)
    return model(given[0], other=given[1]) if name == "two_inputs" else model(*given)


@pytest.mark.parametrize("name", MODELS)
def test_frontends_agree_and_compute_the_model(name: str) -> None:
    torch.manual_seed(0)
    build, sample = MODELS[name]
    model = build().eval()
    example = sample(3)
    positional, kwargs = (example[:1], {"other": example[1]}) if len(example) > 1 else (example, {})
    captured = {
        frontend: capture(model, positional, kwargs, frontend=frontend, dynamic_batch=True)
        for frontend in ("torch_fx", "torch_export")
    }
    by_fx = captured["torch_fx"]
    assert str(by_fx.program) == str(captured["torch_export"].program)
    assert by_fx.output_tree == captured["torch_export"].output_tree
    for batch in (1, 2, 5):
        inputs = sample(batch)
        with torch.no_grad():
            expected = call(name, model, inputs)
            for item in captured.values():
                torch.testing.assert_close(run(item, inputs), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "vgg11_bn"])
def test_torchvision_models(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=10).eval()
    example = torch.rand(2, 3, 64, 64)
    by_fx = capture(model, (example,), frontend="torch_fx", dynamic_batch=True)
    by_export = capture(model, (example,), frontend="torch_export", dynamic_batch=True)
    assert str(by_fx.program) == str(by_export.program)
    with torch.no_grad():
        torch.testing.assert_close(run(by_fx, (example[:1],)), model(example[:1]))


def test_the_program_reads() -> None:
    captured = capture(mlp().eval(), (torch.zeros(4, 2, 3),))
    assert captured.frontend == "torch_fx"
    assert str(captured.program) == (
        "program(%input: f32[b, 2, 3]) stage=concrete {\n"
        "  param @1.weight: f32[8, 6]\n"
        "  param @1.bias: f32[8]\n"
        "  param @4.weight: f32[3, 8]\n"
        "  param @4.bias: f32[3]\n"
        "  %reshape: f32[b, 6] = reshape(%input) {shape=(b, 6)}\n"
        "  %linear: f32[b, 8] = linear(%reshape, @1.weight, @1.bias)\n"
        "  %relu: f32[b, 8] = relu(%linear)\n"
        "  %linear_1: f32[b, 3] = linear(%relu, @4.weight, @4.bias)\n"
        "  return %linear_1\n"
        "}"
    )


class OnlyExport(nn.Module):
    """A loop that symbolic tracing cannot follow, and a value computed from parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim > 2:
            x = x.flatten(1)
        state = torch.zeros(x.shape[0], 3)
        for column in x.unbind(1):
            state = state + column[:, None]
        return torch.tanh(self.linear(x) + state + torch.arange(3))


def test_export_takes_over() -> None:
    torch.manual_seed(0)
    model = OnlyExport()
    captured = capture(model, (torch.zeros(3, 2, 2),), dynamic_batch=True)
    assert captured.frontend == "torch_export"
    assert "call" in [node.op for node in captured.program.nodes]
    for batch in (1, 4):
        x = torch.rand(batch, 2, 2)
        torch.testing.assert_close(run(captured, (x,)), model(x))


def test_reparametrized_weights_are_computed_in_the_program() -> None:
    torch.manual_seed(0)
    for frontend in ("torch_fx", "torch_export"):
        for norm in (nn.utils.parametrizations.weight_norm, nn.utils.weight_norm):
            model = norm(nn.Linear(4, 3))
            captured = capture(model, (torch.zeros(2, 4),), frontend=frontend)
            names = [param.name for param in captured.program.params]
            assert len(names) == 3 and "weight" not in names
            x = torch.rand(5, 4)
            torch.testing.assert_close(run(captured, (x,)), model(x))


def test_tied_parameters_have_one_path() -> None:
    captured = capture(Reused(), (torch.zeros(2, 5),))
    assert [param.name for param in captured.program.params] == [
        "first.weight",
        "first.bias",
        "second.bias",
    ]


def test_spans_point_at_the_users_lines() -> None:
    for frontend in ("torch_fx", "torch_export"):
        program = capture(Spellings(), (torch.zeros(2, 6),), frontend=frontend).program
        spans = [node.span for node in program.nodes]
        assert all(span is not None and span.file == __file__ for span in spans)
        first = spans[0]
        assert first is not None and "self.first(x)" in first.text and first.module == "first"


class Mixed(nn.Module):
    """Casts, detached weights, normalisation that keeps no statistics, results in tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.InstanceNorm1d(4, affine=True)

    def forward(self, x: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        x = F.linear(x, self.linear.weight.detach(), self.linear.bias)
        x = x.double().to(torch.float32) + index.float() + index.to(x.dtype)
        # Elements that differ: normalising equal ones is 0 / 0, up to rounding.
        x = self.norm(torch.stack((x, x * x, 1 - x), 2)).amax(2)
        values, places = torch.max(x, dim=1)
        return values, places, x.topk(2, dim=1).values, x[:, torch.tensor([1, 0])]


@pytest.mark.parametrize("frontend", ["torch_export", "auto"])
def test_functions_without_a_rule_run_as_they_are(frontend: str) -> None:
    torch.manual_seed(0)
    model = Mixed().eval()
    index = torch.arange(4).expand(3, 4)
    captured = capture(model, (torch.zeros(3, 4), index), frontend=frontend, dynamic_batch=True)
    assert "unsupported" not in {node.op for node in captured.program.nodes}
    with torch.no_grad():
        for batch in (1, 3, 5):
            inputs = torch.rand(batch, 4), torch.arange(4).expand(batch, 4)
            torch.testing.assert_close(run(captured, inputs), model(*inputs))


@pytest.mark.parametrize("frontend", ["torch_fx", "torch_export"])
def test_detached_weights_stay_detached(frontend: str) -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x.detach() + x, self.linear.weight.detach(), self.linear.bias)

    captured = capture(Detached(), (torch.zeros(3, 4),), frontend=frontend)
    ops = [node.op for node in captured.program.nodes]
    assert ops == ["detach", "add", "detach", "linear"]
