"""Models that tempt a tracer: each is bounded soundly or refused, never bounded wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.errors import BoundGraphError, InternalError, NonFiniteError, SoundnessError
from boundgraph.testing import check_model

METHODS = ("ibp", "symbolic", "mix", "crown-ibp", "crown")


class Model(nn.Module):
    """A forward function, with two layers and a weight at hand."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.function = function
        self.fc, self.conv = nn.Linear(3, 3), nn.Conv2d(2, 2, (2, 3))
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.row, self.block = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(4, 1, 3))
        self.register_buffer("buffer", torch.ones(1))
        self.count = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def alias(m: Model, x: Tensor) -> Tensor:
    y = x * 1.0
    z = y
    y += 3
    return z * y


def view_write(m: Model, x: Tensor) -> Tensor:
    y = x * 1.0
    y.view(-1).mul_(2)
    return y


def item_write(m: Model, x: Tensor) -> Tensor:
    y = x * 1.0
    y[:, 0] = 0.0
    return y


def slice_write(m: Model, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1:].add_(x[:, :-1])
    return y


def inplace_relu(m: Model, x: Tensor) -> Tensor:
    y = x * 2
    r = F.relu(y, inplace=True)
    return y - r + F.relu_(y * 3)


def counter(m: Model, x: Tensor) -> Tensor:
    m.count = m.count + 1
    return x * m.count


def buffer_write(m: Model, x: Tensor) -> Tensor:
    m.buffer.add_(1)
    return x * m.buffer


def branch(m: Model, x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else -x


def shape_branch(m: Model, x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] > 1 else -x


ROW, MATRIX, IMAGE = (2, 3), (2, 4), (2, 2, 5, 5)
SOUND: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "alias": (alias, ROW),
    "in-place relu": (inplace_relu, ROW),
    "leaky with a negative slope": (lambda m, x: F.leaky_relu(x, -0.3), ROW),
    "leaky with a slope above one": (lambda m, x: F.leaky_relu(x, 3.0), ROW),
    "padding same": (lambda m, x: F.conv2d(x, m.conv.weight, padding="same"), IMAGE),
    "addmm with a matrix": (lambda m, x: torch.addmm(m.weight[:2], x, m.weight), ROW),
    "addmm with a bounded matrix": (lambda m, x: torch.addmm(x, x, m.weight).relu(), ROW),
    "a shared layer": (lambda m, x: m.fc(m.fc(x).relu()).tanh(), ROW),
    "shape in values": (lambda m, x: x.view(x.shape[0], -1) * x.shape[1] + x.size(0), ROW),
    "square": (lambda m, x: x * x, ROW),
    "square of a difference": (lambda m, x: (x - x.mean(1, keepdim=True)) * x, ROW),
    "self product by broadcasting": (lambda m, x: x.unsqueeze(1) * x.unsqueeze(2), ROW),
    "constant of higher rank": (lambda m, x: x + m.block, ROW),
    "constant that widens": (lambda m, x: x[:, :1] * m.row, ROW),
    "detach": (lambda m, x: x.detach() * x, ROW),
    "two selects": (lambda m, x: x[:, -1] + x[..., 0], ROW),
    "steps": (lambda m, x: x[:, 1::2] - x[:, ::2], MATRIX),
    "batch moved and back": (lambda m, x: (x.transpose(0, 1) - 0.1).relu().transpose(0, 1), ROW),
    "stack first": (lambda m, x: torch.stack([x, 2 * x], 0), ROW),
    "dilated pool": (lambda m, x: F.max_pool2d(x, 2, 1, 0, 2, True), IMAGE),
    "pool to a kept size": (lambda m, x: F.adaptive_avg_pool2d(x, (None, 2)), IMAGE),
    "padding far below": (lambda m, x: F.pad(x, (1, 1), value=-5.0).relu(), ROW),
    "division by a bounded value": (lambda m, x: x / (x * x + 1.0).exp(), ROW),
    "alpha": (lambda m, x: torch.sub(x, m.row, alpha=3) + torch.rsub(x, 2.0, alpha=3), ROW),
    "single precision inside": (lambda m, x: x.float().double() * 2, ROW),
    "expand": (lambda m, x: x[:, :1].expand(-1, 3) * m.row, ROW),
    "dropout in evaluation": (lambda m, x: F.dropout(x, 0.5, training=m.training), ROW),
    "checkpoint": (
        lambda m, x: torch.utils.checkpoint.checkpoint(m.fc, x, use_reentrant=False),
        ROW,
    ),
    "cropping": (lambda m, x: F.pad(x, (-1, 1)), ROW),
    "rounding": (lambda m, x: x.round() + x, ROW),
    "write into a slice": (slice_write, ROW),
    "write into an element": (item_write, ROW),
}
# Methods that keep symbols per sample refuse to mix samples; intervals do not mind.
MIXES: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "mean of all": (lambda m, x: x - x.mean(), ROW),
    "softmax over the batch": (lambda m, x: x.softmax(0), ROW),
    "join along the batch": (lambda m, x: torch.cat([x, 2 * x], 0), ROW),
    "batch into features": (lambda m, x: x.reshape(4, -1).relu().sum(1), MATRIX),
    "sum of all": (lambda m, x: x.sum(), ROW),
    "first sample": (lambda m, x: x - x[0], ROW),
    "padded batch": (lambda m, x: F.pad(x, (0, 0, 1, 1)), ROW),
}
REFUSED: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "write through a view": (view_write, ROW),
    "a counter": (counter, ROW),
    "a buffer that moves": (buffer_write, ROW),
    "a branch on a value": (branch, ROW),
    "random numbers": (lambda m, x: x + torch.rand_like(x), ROW),
    "dropout in training": (lambda m, x: F.dropout(x, 0.5), ROW),
    "a value read": (lambda m, x: x * x.sum().item(), ROW),
    "integers": (lambda m, x: x.long().double(), ROW),
    "statistics of the batch": (lambda m, x: F.batch_norm(x, None, None, training=True), ROW),
    "not a number": (lambda m, x: x + torch.tensor(float("nan")), ROW),
}


def region(shape: tuple[int, ...]) -> bg.Box:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return bg.Box(x - 0.4, x + 0.3)


def model(function: Callable[..., Tensor]) -> nn.Module:
    return Model(function).double().eval()


@pytest.mark.parametrize("name", SOUND)
def test_bounded_soundly(name: str) -> None:
    function, shape = SOUND[name]
    assert check_model(model(function), region(shape), methods=METHODS, points=15)


@pytest.mark.parametrize("name", MIXES)
def test_mixing_samples(name: str) -> None:
    function, shape = MIXES[name]
    check_model(model(function), region(shape), methods=("ibp",), points=15)
    for method in METHODS[1:]:
        with pytest.raises(BoundGraphError):
            bg.compile(model(function), region(shape), method=method)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("method", ["ibp", "mix", "crown"])
def test_refused(name: str, method: str) -> None:
    function, shape = REFUSED[name]
    with pytest.raises(BoundGraphError) as caught:
        bg.compile(model(function), region(shape), method=method)(region(shape))
    assert not isinstance(caught.value, InternalError | SoundnessError)


def test_a_model_that_knows_its_batch_size_is_bounded_at_that_size() -> None:
    """A branch on the batch size holds for the size at hand; another size is compiled anew."""
    bounds_of = bg.bound(model(shape_branch))
    two = region(ROW)
    one = bg.Box(two.lower[:1], two.upper[:1])
    doubled, negated = bounds_of(two), bounds_of(one)
    assert torch.allclose(doubled.lower, 2 * two.lower)
    assert torch.allclose(negated.lower, -one.upper)


def test_a_pole_in_the_region_is_never_a_finite_claim() -> None:
    box = bg.Box(torch.tensor([[-1.0, 1.0]]), torch.tensor([[1.0, 2.0]]))
    for method in METHODS:
        reciprocal = bg.compile(Model(lambda m, x: 1.0 / x), box, method=method)
        try:
            bounds = reciprocal(box)
        except NonFiniteError:
            continue
        assert bounds.lower[0, 0] == -torch.inf and bounds.upper[0, 0] == torch.inf


class Hooked(nn.Module):
    def __init__(self, **hooks: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(3, 3)
        for name, hook in hooks.items():
            getattr(self.fc, f"register_{name}")(hook)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Sevenfold(nn.Linear):
    """A subclass whose forward is not its parent's."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 7.0


@pytest.mark.parametrize(
    "made",
    [
        lambda: Hooked(forward_hook=lambda module, args, out: out * 10.0),
        lambda: Hooked(forward_pre_hook=lambda module, args: (args[0] * 10.0,)),
        lambda: nn.Sequential(Sevenfold(3, 3), nn.ReLU()),
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.ReLU()),
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))),
    ],
    ids=["hook", "pre-hook", "subclass", "weight_norm", "spectral_norm"],
)
def test_what_a_module_really_computes(made: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    check_model(made().double().eval(), region(ROW), methods=METHODS, points=9)
