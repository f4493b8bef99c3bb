"""Reference networks of the certified-training literature, for any image size."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from boundgraph.errors import ConfigError

Shape = tuple[int, int, int]


def tiny(image_shape: Shape, classes: int) -> nn.Sequential:
    """Two convolutions and a hidden layer, for images of about 8×8 pixels."""
    layers = [nn.Conv2d(image_shape[0], 16, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU()]
    return _with_head(layers, image_shape, (100,), classes)


def small(image_shape: Shape, classes: int) -> nn.Sequential:
    """The "small" network of Wong et al. (arXiv 1805.12514) and of MixTrain."""
    layers = [nn.Conv2d(image_shape[0], 16, 4, stride=2, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU()]
    return _with_head(layers, image_shape, (100,), classes)


def large(image_shape: Shape, classes: int) -> nn.Sequential:
    """The "large" network of Wong et al. (arXiv 1805.12514) and of MixTrain."""
    layers = [nn.Conv2d(image_shape[0], 32, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(32, 32, 4, stride=2, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(64, 64, 4, stride=2, padding=1), nn.ReLU()]
    return _with_head(layers, image_shape, (512, 512), classes)


NETWORKS: dict[str, Callable[[Shape, int], nn.Sequential]] = {
    "tiny": tiny,
    "small": small,
    "large": large,
}


def network_for(image_shape: Shape) -> str:
    """The network that is used where none is asked for."""
    return "tiny" if min(image_shape[1:]) < 16 else "small"


def make_network(
    name: str, image_shape: Shape, classes: int, seed: int | None = None
) -> nn.Sequential:
    """A network by name, with weights that a seed decides; None draws from torch's generator.

    Args:
        name: `"tiny"`, `"small"` or `"large"`.
        image_shape: (channels, height, width).
        classes: width of the output.

    Raises:
        ConfigError: an unknown name, or images too small for the network.
    """
    if name not in NETWORKS:
        raise ConfigError(f"unknown network {name!r}; choose one of {', '.join(NETWORKS)}")
    if seed is None:
        return NETWORKS[name](image_shape, classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name](image_shape, classes)


def _with_head(
    layers: list[nn.Module], image_shape: Shape, hidden: tuple[int, ...], classes: int
) -> nn.Sequential:
    """Convolutions, then dense layers whose first width follows from the image size."""
    height, width = image_shape[1:]
    channels = image_shape[0]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            # Both paddings of these networks keep the size at stride 1 and halve it at 2.
            height, width = height // layer.stride[0], width // layer.stride[1]
            channels = layer.out_channels
    if min(height, width) < 1:
        shape = "×".join(map(str, image_shape))
        raise ConfigError(f"images of {shape} are too small for this network; try 'tiny'")
    layers.append(nn.Flatten())
    wide = math.prod((channels, height, width))
    for size in hidden:
        layers += [nn.Linear(wide, size), nn.ReLU()]
        wide = size
    return nn.Sequential(*layers, nn.Linear(wide, classes))
