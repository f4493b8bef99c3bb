"""Generators on windows give the bounds of whole generators; a law over convolutions."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from schedules import assert_equal, both
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.domains import Interval
from boundgraph.domains.windowed import Windowed
from boundgraph.errors import ConfigError
from boundgraph.testing import excess, sample_point


class Branches(nn.Module):
    """Sums of branches whose windows differ, a branch that was never relaxed, two readers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.skip, self.last = nn.Conv2d(2, 3, 1), nn.Linear(3 * 14 * 14, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        z = self.second(y) + y - self.skip(x)
        z = torch.tanh(z)
        return self.last((z + y).flatten(1))


class Ends(nn.Module):
    """Windows that a product with a matrix does not end, and a flat value with two readers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool = nn.Conv2d(1, 2, 3, padding=1), nn.AvgPool2d(2)
        self.last, self.other = nn.Linear(2 * 14 * 14, 3), nn.Linear(2 * 7 * 7, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        flat = y.flatten(1)
        return (
            self.last(flat) + self.last(torch.sigmoid(flat)) + self.other(self.pool(y).flatten(1))
        )


def layers(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(*parts, nn.Flatten(), nn.LazyLinear(4))


def network(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    relu = nn.ReLU
    made = {
        "strides": (
            layers(nn.Conv2d(1, 3, 4, 2, 1), relu(), nn.Conv2d(3, 4, 4, 2, 1), relu()),
            (2, 1, 16, 16),
        ),
        "uneven": (
            layers(
                nn.Conv2d(2, 3, (3, 2), (2, 1), (0, 1)), relu(), nn.Conv2d(3, 2, (1, 3), (1, 2))
            ),
            (2, 2, 15, 12),
        ),
        "dilated": (
            layers(
                nn.Conv2d(1, 2, 3, 1, 2, dilation=2), relu(), nn.Conv2d(2, 2, 2, 2, 1, dilation=3)
            ),
            (2, 1, 16, 16),
        ),
        "groups": (
            layers(
                nn.Conv2d(2, 4, 3, 1, 1, groups=2),
                nn.Sigmoid(),
                nn.Conv2d(4, 4, 3, 2, 1, groups=4),
                relu(),
            ),
            (2, 2, 12, 12),
        ),
        # Convolutions that meet without a relaxed op in between, and three relaxed in a row.
        "chain": (
            layers(
                nn.Conv2d(1, 2, 3, 1, 1),
                nn.Conv2d(2, 2, 3, 1, 1),
                relu(),
                nn.Conv2d(2, 3, 3, 2, 1),
                relu(),
                nn.Conv2d(3, 2, 2, 1, 0),
                nn.Tanh(),
            ),
            (1, 1, 18, 18),
        ),
        # One unit, which sees nothing but padding.
        "outside": (
            layers(nn.Conv2d(1, 2, 3, 1, 1), relu(), nn.Conv2d(2, 1, 2, 40, 12), relu()),
            (1, 1, 9, 9),
        ),
        # Windows that grow until whole generators are cheaper, the input relaxed at once.
        "grows": (
            layers(relu(), *(m for _ in range(4) for m in (nn.Conv2d(1, 1, 3, 1, 1), relu()))),
            (2, 1, 9, 9),
        ),
        "unfinished": (nn.Sequential(nn.Conv2d(1, 2, 3), relu(), nn.Conv2d(2, 1, 3)), (2, 1, 9, 9)),
        "restart": (
            layers(nn.Conv2d(1, 2, 3, 1, 1), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3)),
            (2, 1, 12, 12),
        ),
        "branches": (Branches(), (2, 2, 14, 14)),
        "ends": (Ends(), (2, 1, 14, 14)),
    }
    model, shape = made[name]
    model = model.double().eval()
    model(torch.zeros(shape, dtype=torch.float64))
    return model, shape


NAMES = (
    "strides", "uneven", "dilated", "groups", "chain", "grows", "unfinished", "restart",
    "branches", "ends", "outside",
)  # fmt: skip


def setting(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(NAMES.index(name))
    model, shape = network(name)
    return model, torch.randn(shape, dtype=torch.float64)


def bounds(model: nn.Module, region: bg.Region, schedule: str) -> Interval:
    program = bg.compile(model, region, method="symbolic", schedule=schedule)
    assert ("windows=((" in str(program.ir)) == (schedule == "windows")
    with torch.no_grad():
        found = program(region)
    return Interval(found.lower, found.upper)


@pytest.mark.parametrize("name", NAMES)
def test_windows_give_the_bounds_of_whole_generators(name: str) -> None:
    model, x = setting(name)
    region = bg.LinfBall(x, 0.1)
    forward, backward, allowed = both(model, region)
    found = bounds(model, region, "windows")
    assert_equal(found, forward, allowed)
    assert_equal(found, backward, allowed)
    program = bg.compile(model, region, method="symbolic", schedule="windows")
    reference = program.interpret(region)
    assert_equal(found, Interval(reference.lower.detach(), reference.upper.detach()), allowed)
    generator = torch.Generator().manual_seed(0)
    for index in range(20):
        point = sample_point(region.interval(), generator, corner=index % 2 == 1)
        with torch.no_grad():
            assert not (excess(model(point), found, allowed) > 0).any()


@pytest.mark.parametrize("name", ["strides", "dilated", "branches"])
@pytest.mark.parametrize("norm", [1.0, 2.0, 3.0])
def test_balls(name: str, norm: float) -> None:
    model, x = setting(name)
    region = bg.LpBall(x, 0.5, norm)
    _, _, allowed = both(model, bg.LinfBall(x, 0.5))
    found, whole = (bounds(model, region, schedule) for schedule in ("windows", "forward"))
    assert_equal(found, whole, allowed)


def test_gradients_and_other_batches() -> None:
    model, x = setting("strides")
    region, labels = bg.LinfBall(x, 0.1), torch.tensor([0, 1])
    grads = []
    for schedule in ("windows", "forward"):
        options = {"method": "symbolic", "schedule": schedule, "spec": bg.Margin(4)}
        program = bg.compile(model, region, **options)
        model.zero_grad()
        program.run([region.interval()], labels).lower.square().sum().backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*grads, strict=True))
    program = bg.compile(model, region, method="symbolic", schedule="windows")
    assert torch.allclose(program(region).lower[1:], program(bg.LinfBall(x[1:], 0.1)).lower)


def test_sound_rounding_is_refused() -> None:
    model, x = setting("strides")
    options = {"method": "symbolic", "schedule": "windows", "rounding": "sound"}
    with pytest.raises(ConfigError, match="forward schedule"):
        bg.compile(model, bg.LinfBall(x, 0.1), **options)


def test_kept_symbols_are_whole() -> None:
    model, x = setting("unfinished")
    region = bg.LinfBall(x, 0.1)
    program = bg.compile(model, region, method="symbolic", schedule="windows", keep_symbolic=True)
    kept = program.run([region.interval()])
    assert all(isinstance(block, Tensor) for block in kept.blocks.values())
    plain = bg.compile(model, region, method="symbolic", schedule="forward")(region)
    assert torch.allclose(kept.concretize().lower, plain.lower)


@pytest.mark.parametrize("seed", range(6))
def test_whole_generators_of_a_window(seed: int) -> None:
    """`dense` puts every coefficient at its symbol: the same reach, the same product."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    size = rng.randint(8, 12)
    block = Windowed.diagonal(torch.rand(2, 2, size, size), (2, size, size))
    if seed % 2:
        block = block * torch.randn(2, 2, size, size)
    for _ in range(2):
        kernel, stride, padding = rng.randint(1, 3), rng.randint(1, 2), rng.randint(0, 1)
        size = (size + 2 * padding - kernel) // stride + 1
        features = (3, size, size)
        options = {"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (1, 1)}
        weight, before = torch.randn(3, block.features[0], kernel, kernel), block.dense()
        block = block.convolved(weight, features, kernel=(kernel,) * 2, **options)
        after = F.conv2d(before.flatten(0, 1), weight, stride=stride, padding=padding)
        torch.testing.assert_close(block.dense(), after.unflatten(0, before.shape[:2]))
        torch.testing.assert_close(block.reach(None), block.dense().abs().sum(0))
        block = block * torch.rand(2, *features)
        matrix = torch.randn(4, 3 * size * size)
        flat = block.flattened()
        torch.testing.assert_close(flat.times(matrix, 4), F.linear(flat.dense(), matrix))


@pytest.mark.parametrize("name", ["strides", "branches", "ends"])
def test_mix_on_windows(name: str) -> None:
    model, x = setting(name)
    region = bg.LinfBall(x, 0.1)
    _, _, allowed = both(model, region)
    found = []
    for schedule in ("windows", "auto"):
        program = bg.compile(model, region, method="mix", schedule=schedule)
        assert ("windows=((" in str(program.ir)) == (schedule == "windows")
        bounds = program(region)
        found.append(Interval(bounds.lower.detach(), bounds.upper.detach()))
    assert_equal(found[0], found[1], allowed)


def random_layers(rng: random.Random) -> nn.Sequential:
    """Convolutions of any kind, activations, sometimes pooling, a linear end or none."""
    channels, parts = 2, []
    for _ in range(rng.randint(1, 3)):
        groups = rng.choice([1, 1, channels])
        outputs = channels * rng.randint(1, 2)
        kernel = (rng.randint(1, 3), rng.randint(1, 3))
        padding, stride = (rng.randint(0, 2), rng.randint(0, 1)), (rng.randint(1, 2), 1)
        dilation = rng.randint(1, 2)
        options = {"padding": padding, "stride": stride, "dilation": dilation, "groups": groups}
        parts.append(nn.Conv2d(channels, outputs, kernel, **options))
        parts.append(rng.choice([nn.ReLU, nn.Tanh, nn.LeakyReLU, nn.Identity])())
        channels = outputs
    if rng.random() < 0.3:
        parts.append(rng.choice([nn.AvgPool2d, nn.MaxPool2d])(2))
    return layers(*parts) if rng.random() < 0.8 else nn.Sequential(*parts)


@pytest.mark.parametrize("seed", range(12))
def test_random_convolutions(seed: int) -> None:
    """Windows against whole generators, in both dtypes, and the network at corners."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model, x = random_layers(rng), torch.randn(2, 2, rng.randint(11, 14), rng.randint(11, 14))
    model(x)
    model, x = model.double().eval(), x.double()
    region = bg.LinfBall(x, rng.choice([0.0, 0.01, 0.1, 1.0]))
    whole, _, allowed = both(model, region)
    found = bounds(model, region, "windows")
    assert_equal(found, whole, allowed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for index in range(20):
            point = sample_point(region.interval(), generator, corner=index % 2 == 1)
            assert not (excess(model(point), found, allowed) > 0).any()
