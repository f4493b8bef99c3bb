"""The networks that benchmarks measure, and weights for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boundgraph.data.load import load
from boundgraph.errors import DataError
from boundgraph.training.networks import make_network


class Block(nn.Module):
    """A residual block of two 3×3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.skip(x))


def resnet() -> nn.Sequential:
    """A CIFAR ResNet without normalisation: three blocks of 16, 32 and 64 channels."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(),
        Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2),
        nn.Flatten(), nn.Linear(64 * 8 * 8, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def cnn7() -> nn.Sequential:
    """CNN7 (Shi et al., arXiv 2103.17268) for 32×32 colour images, without normalisation."""
    layers: list[nn.Module] = []
    plan = ((3, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 128, 1))
    for inputs, outputs, stride in plan:
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(128 * 16 * 16, 512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Subject:
    """A network with images to bound.

    Args:
        model: in evaluation mode.
        x: `[n, ...]` images in [0, 1].
        y: `[n]` labels.
        weights: where the weights come from, in words.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    weights: str


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "small": (lambda: make_network("small", (1, 28, 28), 10), (1, 28, 28)),
    "large": (lambda: make_network("large", (1, 28, 28), 10), (1, 28, 28)),
    "cnn7": (cnn7, (3, 32, 32)),
    "resnet": (resnet, (3, 32, 32)),
}


def subject(name: str, count: int, steps: int) -> Subject:
    """A network after `steps` plain steps on its data, and the first test images.

    Without the data (see `boundgraph.data.load`) the weights stay random and so are images.
    """
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model = make()
    source = "mnist" if shape[0] == 1 else "cifar10"
    try:
        data = load(source)
    except DataError:
        x, y = torch.rand(count, *shape), torch.randint(0, 10, (count,))
        return Subject(model.eval(), x, y, f"random weights and images ({source} not found)")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        at = torch.randint(0, len(data.y_train), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(data.x_train[at]), data.y_train[at]).backward()
        optimizer.step()
    what = f"{steps} plain steps on {source}" if steps else "random weights"
    x, y = data.x_test[:count], data.y_test[:count]
    return Subject(model.eval(), x, y, f"{what}, its first {count} test images")


def plain_network(
    data: str, size: str = "small", steps: int = 100
) -> tuple[nn.Module, Tensor, Tensor]:
    """A network after `steps` plain steps through a data set in its order, and its test images.

    Raises:
        DataError: the data set is not on this machine.
    """
    source = load(data)
    torch.manual_seed(0)
    model = make_network(size, tuple(source.x_train.shape[1:]), 10, 0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for start in range(0, steps * 128, 128):
        batch = slice(start, start + 128)
        loss = F.cross_entropy(model(source.x_train[batch]), source.y_train[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), source.x_test, source.y_test
