"""Random networks: directed acyclic graphs of layers, with shared weights and two inputs."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boundgraph.domains.regions import Box

Shape = tuple[int, ...]
Step = tuple[str, tuple[int, ...], Any]


def _add(a: Tensor, b: Tensor) -> Tensor:
    return a + b


def _sub(a: Tensor, b: Tensor) -> Tensor:
    return a - b


def _mul(a: Tensor, b: Tensor) -> Tensor:
    return a * b


def _cat(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], 1)


def _stack_mean(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([a, -b], 1).mean(1)


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky": lambda x: F.leaky_relu(x, 0.2),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "scale": lambda x: x * -1.5 + 0.25,
    "rsub": lambda x: 0.5 - x,
    "div": lambda x: x / 3.0,
    "softmax": lambda x: torch.softmax(x, 1),
    "log_softmax": lambda x: F.log_softmax(x, dim=1),
    "exp_tanh": lambda x: torch.tanh(x).exp(),
    "reciprocal": lambda x: 1.0 / (torch.sigmoid(x) + 0.5),
    "split": lambda x: torch.cat(tuple(reversed(x.chunk(2, 1))), 1),
    "center": lambda x: x - x.mean(1, keepdim=True),
    "square": lambda x: x * x,
}
BINARY = {"add": _add, "sub": _sub, "mul": _mul, "cat": _cat, "stack_mean": _stack_mean}
IMAGE_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "max_pool": lambda x: F.max_pool2d(x, 2, stride=1, padding=1),
    "max_pool_ceil": lambda x: F.max_pool2d(x, 3, stride=2, ceil_mode=True),
    "avg_pool": lambda x: F.avg_pool2d(x, 2, stride=1, padding=1, count_include_pad=False),
    "pad_constant": lambda x: F.pad(x, (1, 0, 0, 1), value=0.5),
    "pad_reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "transpose": lambda x: x.transpose(2, 3),
    "crop": lambda x: x[:, :, 1:, :-1],
    "channel_mean": lambda x: x * x.mean((2, 3), keepdim=True),
}


class RandomNet(nn.Module):
    """Runs recorded steps; `steps` holds (kind, operands, layer index or None)."""

    def __init__(self, layers: list[nn.Module], steps: list[Step], constants: list[Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.steps = steps
        for index, constant in enumerate(constants):
            self.register_buffer(f"constant{index}", constant)

    def forward(self, *inputs: Tensor) -> Tensor:
        values = list(inputs)
        for kind, operands, extra in self.steps:
            args = [values[i] for i in operands]
            if kind == "layer":
                values.append(self.layers[extra](*args))
            elif kind == "constant":
                values.append(args[0] * getattr(self, f"constant{extra}"))
            else:
                values.append((UNARY | BINARY | IMAGE_UNARY)[kind](*args))
        return values[-1]

    def __repr__(self) -> str:
        return f"RandomNet({self.steps}, {[str(layer) for layer in self.layers]})"


class OneInput(nn.Module):
    """`*args` cannot be traced symbolically; spell the inputs out."""

    def __init__(self, net: RandomNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TwoInputs(nn.Module):
    def __init__(self, net: RandomNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.net(x, y)


class _Drawer:
    def __init__(self, rng: random.Random, shapes: list[Shape]) -> None:
        self.rng, self.shapes = rng, shapes
        self.layers: list[nn.Module] = []
        self.steps: list[Step] = []
        self.constants: list[Tensor] = []

    def push(self, kind: str, operands: tuple[int, ...], extra: Any = None) -> bool:
        """Record a step if it runs on these shapes and does not grow without bound."""
        try:
            net = RandomNet(
                self.layers, [(kind, tuple(range(len(operands))), extra)], self.constants
            )
            with torch.no_grad():
                out = net.eval()(*(torch.ones(2, *self.shapes[i]) for i in operands))
        except (RuntimeError, IndexError, ValueError):
            return False
        if out[0].numel() > 80 or out.numel() == 0 or out.shape[0] != 2:
            return False
        self.steps.append((kind, operands, extra))
        self.shapes.append(tuple(out.shape[1:]))
        return True

    def layer(self, source: int) -> bool:
        module = self._shared(source) or self._new(self.shapes[source])
        index = next((i for i, known in enumerate(self.layers) if known is module), None)
        if index is None:
            index = len(self.layers)
            self.layers.append(module)
        return self.push("layer", (source,), index)

    def _shared(self, source: int) -> nn.Module | None:
        if not self.layers or self.rng.random() > 0.25:
            return None
        return self.rng.choice(self.layers)

    def _new(self, shape: Shape) -> nn.Module:
        rng, width = self.rng, shape[0]
        if len(shape) == 1:
            if rng.random() < 0.2:
                return _random_norm(nn.BatchNorm1d(width, affine=rng.random() < 0.7), rng)
            return nn.Linear(width, rng.randint(1, 7), bias=rng.random() < 0.8)
        if len(shape) == 2:
            return nn.Conv1d(width, rng.randint(1, 3), rng.randint(1, 2), padding=rng.randint(0, 1))
        if rng.random() < 0.2:
            return _random_norm(nn.BatchNorm2d(width), rng)
        groups = rng.choice([g for g in (1, 2, 3) if width % g == 0])
        out = groups * rng.randint(1, 2)
        if rng.random() < 0.2:
            return nn.ConvTranspose2d(width, out, 2, stride=rng.randint(1, 2), groups=groups)
        mode = rng.choice(("zeros", "zeros", "reflect", "replicate", "circular"))
        return nn.Conv2d(
            width, out, rng.randint(1, 3), stride=rng.randint(1, 2), padding=rng.randint(0, 1),
            dilation=rng.randint(1, 2), groups=groups, padding_mode=mode, bias=rng.random() < 0.8,
        )  # fmt: skip

    def constant(self, source: int) -> bool:
        self.constants.append(torch.randn(self.shapes[source]))
        return self.push("constant", (source,), len(self.constants) - 1)

    def step(self) -> bool:
        rng, count = self.rng, len(self.shapes)
        # Prefer recent values, so that graphs get deep, but branch back now and then.
        source = count - 1 if rng.random() < 0.7 else rng.randrange(count)
        roll = rng.random()
        if roll < 0.3:
            return self.layer(source)
        if roll < 0.35:
            return self.constant(source)
        if roll < 0.55:
            same = [i for i in range(count) if self.shapes[i] == self.shapes[source]]
            return self.push(rng.choice(list(BINARY)), (source, rng.choice(same)))
        table = IMAGE_UNARY if len(self.shapes[source]) == 3 and rng.random() < 0.5 else UNARY
        return self.push(rng.choice(list(table)), (source,))


def _random_norm(norm: Any, rng: random.Random) -> nn.Module:
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.3, 2.0)
        if norm.weight is not None:
            norm.weight.normal_()
            norm.bias.normal_()
    return norm


def random_model(seed: int | str, classes: int | None = None) -> tuple[nn.Module, list[Shape]]:
    """A random float64 network in evaluation mode, and the shapes of its inputs per sample."""
    rng = random.Random(f"model/{seed}")
    torch.manual_seed(rng.getrandbits(40))
    if rng.random() < 0.5:
        first: Shape = (rng.randint(1, 5),)
    else:
        first = (rng.randint(1, 2), rng.randint(3, 5), rng.randint(3, 5))
    shapes = [first, first] if rng.random() < 0.25 else [first]
    drawer = _Drawer(rng, list(shapes))
    if len(shapes) == 2:
        drawer.push(rng.choice(("add", "sub", "mul", "cat")), (0, 1))
    wanted = rng.randint(2, 9)
    while wanted:
        wanted -= drawer.step()
    last = len(drawer.shapes) - 1
    if classes is not None:
        drawer.layers += [nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))]
        drawer.push("layer", (last,), len(drawer.layers) - 1)
    net = RandomNet(drawer.layers, drawer.steps, drawer.constants)
    model = OneInput(net) if len(shapes) == 1 else TwoInputs(net)
    return model.double().eval(), shapes


def random_box(shape: Shape, rng: random.Random, batch: int) -> Box:
    """A box: wide, small, of zero width, or with a width of its own for each element."""
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    center = torch.randn((batch, *shape), generator=generator, dtype=torch.float64)
    if rng.random() < 0.2:
        center = center * rng.choice((1e-6, 30.0))
    radius = torch.rand(center.shape, generator=generator, dtype=torch.float64)
    radius = radius * rng.choice((1.0, 0.3, 0.01, 1e-7, 0.0))
    if rng.random() < 0.4:
        radius = radius * (torch.rand(center.shape, generator=generator) < 0.5)
    return Box(center - radius, center + radius)
