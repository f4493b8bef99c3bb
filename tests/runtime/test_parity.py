"""One program, three ways to run it: interpreted, emitted, emitted and compiled."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
import torchvision
from random_models import random_box, random_model
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.domains import Interval
from boundgraph.testing import excess, model_allowance, symbols_of


@pytest.fixture(autouse=True)
def _forget_compiled_programs() -> None:
    """All programs share `BoundProgram.run`, and torch stops compiling one function anew after
    eight kinds of arguments; each test is about its own program."""
    torch._dynamo.reset()


METHODS = ("ibp", "symbolic", "mix", "crown-ibp", "crown")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.fc = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = x + F.relu(self.norm(self.conv(x)))
        return self.fc(torch.cat([y, x], 1).flatten(1)[:, :32]).softmax(1)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.a(x)) * torch.sigmoid(self.b(x)), F.leaky_relu(self.a(x))


def zoo(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    if name == "mlp":
        model: nn.Module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        return model, (4,)
    if name == "cnn":
        conv = nn.Conv2d(1, 3, 3, stride=2, padding=1)
        layers = (conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3))
        return nn.Sequential(*layers), (1, 8, 8)
    if name == "residual":
        return Residual().eval(), (2, 4, 4)
    return Gated(), (3,)


def regions(shape: tuple[int, ...], batch: int = 2) -> bg.Box:
    center = torch.rand(batch, *shape)
    return bg.Box(center - 0.05, center + 0.05)


def ends(bounds: bg.Bounds) -> list[Tensor]:
    lower = bounds.lower if isinstance(bounds.lower, tuple) else (bounds.lower,)
    upper = bounds.upper if isinstance(bounds.upper, tuple) else (bounds.upper,)
    return [*lower, *upper]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "gated"])
def test_interpreted_and_emitted_agree(name: str, method: str) -> None:
    """The emitted graph makes the very calls of the interpreter, so results are equal."""
    model, shape = zoo(name)
    box = regions(shape)
    program = bg.compile(model, box, method=method)
    for batch in (box, regions(shape, 3)):
        for emitted, interpreted in zip(
            ends(program(batch)), ends(program.interpret(batch)), strict=True
        ):
            assert torch.equal(emitted, interpreted)


@pytest.mark.parametrize("method", ["ibp", "mix", "crown-ibp"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "gated"])
def test_compiled_agrees(name: str, method: str) -> None:
    model, shape = zoo(name)
    box = regions(shape)
    program = bg.compile(model, box, method=method)
    compiled = torch.compile(program.run, backend="aot_eager", fullgraph=True)
    found, expected = compiled([box.interval()]), program.run([box.interval()])
    _assert_close(model, box, program, found, expected)


def test_inductor_agrees() -> None:
    model, shape = zoo("cnn")
    box = regions(shape)
    program = bg.compile(model, box, method="ibp", spec=bg.Margin(3))
    labels = torch.tensor([0, 2])
    compiled = torch.compile(program.run, fullgraph=True)
    found, expected = compiled([box.interval()], labels), program.run([box.interval()], labels)
    plain = bg.compile(model, box)
    (moved,) = model_allowance(model, box)
    # A margin is a difference of two logits.
    allowed = 4.0 * (moved + moved.amax(1, keepdim=True))
    assert plain(box).lower.shape == found.lower.shape
    for a, b in ((found.lower, expected.lower), (found.upper, expected.upper)):
        assert ((a - b).abs() <= allowed).all()


def _assert_close(
    model: nn.Module, box: bg.Box, program: bg.BoundProgram, found: object, expected: object
) -> None:
    pairs = zip(
        found if isinstance(found, tuple) else (found,),
        expected if isinstance(expected, tuple) else (expected,),
        model_allowance(model, box),
        strict=True,
    )
    terms = 2.0
    if program.method != "ibp":
        terms += symbols_of(bg.compile(model, box, method="symbolic", schedule="forward"), box)
    for a, b, moved in pairs:
        assert isinstance(a, Interval) and isinstance(b, Interval)
        assert not (excess(a, b, terms * moved) > 0).any()
        assert not (excess(b, a, terms * moved) > 0).any()


@pytest.mark.parametrize("seed", range(6))
def test_random_programs_agree(seed: int) -> None:
    import random

    model, shapes = random_model(f"parity/{seed}")
    boxes = [random_box(shape, random.Random(seed), 2) for shape in shapes]
    for method in ("ibp", "mix", "crown"):
        program = bg.compile(model, *boxes, method=method)
        for a, b in zip(ends(program(*boxes)), ends(program.interpret(*boxes)), strict=True):
            assert torch.equal(a, b)


def test_gradients_reach_the_users_parameters() -> None:
    model, shape = zoo("residual")
    model, narrow = model.double(), regions(shape)
    box = bg.Box(narrow.lower.double(), narrow.upper.double())
    program = bg.compile(model, box, method="mix")
    own = {id(parameter) for parameter in model.parameters()}
    assert own == {id(parameter) for parameter in program.parameters()}
    bounds = program.run([box.interval()])
    (bounds.upper - bounds.lower).sum().backward()
    emitted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert {"conv.weight", "norm.weight", "fc.weight"} <= set(emitted)
    model.zero_grad()
    found = program.interpret(box)
    (found.upper - found.lower).sum().backward()
    for name, grad in emitted.items():
        # Shared calls sum their gradients in another order.
        torch.testing.assert_close(grad, model.get_parameter(name).grad)


def test_the_emitted_graph_exports() -> None:
    model, shape = zoo("mlp")
    box = regions(shape)
    program = bg.compile(model, box)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(
        program.graph_module, (box.lower, box.upper), dynamic_shapes=({0: batch}, {0: batch})
    )
    other = regions(shape, 5)
    ((lower, upper),) = exported.module()(other.lower, other.upper)
    assert torch.equal(lower, program(other).lower) and torch.equal(upper, program(other).upper)


def test_the_emitted_graph_is_plain_torch() -> None:
    model, shape = zoo("residual")
    program = bg.compile(model, regions(shape), method="mix")
    for node in program.graph_module.graph.nodes:
        module = getattr(node.target, "__module__", "") or ""
        assert "boundgraph" not in module, node.format_node()


def test_resnet18() -> None:
    """Captured and lowered in seconds; bounds hold and the emitted graph is the interpreter's."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10).eval()
    # Batch statistics of random data keep the activations, and so the bounds, finite.
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 32, 32))
    model.eval()
    center = torch.randn(1, 3, 32, 32)
    box = bg.Box(center - 1e-4, center + 1e-4)
    start = time.perf_counter()
    program = bg.compile(model, box)
    seconds = time.perf_counter() - start
    assert seconds < 15.0, f"{seconds:.1f} s; the target on a quiet machine is 5 s"
    bounds, again = program(box), program.interpret(box)
    assert torch.equal(bounds.lower, again.lower) and torch.equal(bounds.upper, again.upper)
    with torch.no_grad():
        value = model(center)
    assert (bounds.lower <= value).all() and (value <= bounds.upper).all()
