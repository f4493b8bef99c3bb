"""Draw networks and regions on which rounding hurts, and exact points of the regions."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from exact_bounds import rational_point
from random_models import random_model
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.domains.regions import LpBall
from boundgraph.testing._exact import fractions

BOX_METHODS = ("ibp", "symbolic", "mix", "crown-ibp", "crown", "alpha-crown")
BALL_METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown")
REGIONS = ("box", "linf", "clipped", "l1", "l2", "clipped l2", "point")
RADII = (1.0, 0.3, 0.01, 1 / 255, 1e-7)


def _layers(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(getattr(m, "weight", None), Tensor)]


def _subnormal(model: nn.Module, rng: random.Random) -> None:
    for layer in _layers(model):
        if rng.random() < 0.5:
            layer.weight.mul_(1e-40)


def _huge_biases(model: nn.Module, rng: random.Random) -> None:
    for layer in _layers(model):
        if layer.bias is not None:
            layer.bias.mul_(rng.choice((1e4, 1e7)))


def _large_weights(model: nn.Module, rng: random.Random) -> None:
    for layer in _layers(model):
        layer.weight.mul_(rng.choice((1.0, 1e3, 1e6)))


def _cancelling(model: nn.Module, rng: random.Random) -> None:
    """The second half of each row, and of the rows, nearly takes the first away."""
    for layer in _layers(model):
        for dim in range(min(2, layer.weight.dim())):
            half = layer.weight.shape[dim] // 2
            if half:
                first = layer.weight.narrow(dim, 0, half)
                noise = 1.0 + torch.randn_like(first) * rng.choice((0.0, 1e-6, 1e-3))
                layer.weight.narrow(dim, half, half).copy_(-first * noise)
        layer.weight.mul_(rng.choice((1.0, 1e4)))


def _chain(rng: random.Random) -> nn.Module:
    """Many layers a rounding away from the identity."""
    width = rng.randint(2, 4)
    make = rng.choice((nn.ReLU, lambda: nn.LeakyReLU(0.1), nn.Identity))
    layers: list[nn.Module] = []
    for _ in range(rng.choice((4, 5, 6, 8, 12))):
        layer = nn.Linear(width, width)
        with torch.no_grad():
            near = torch.eye(width) * (1.0 + rng.choice((3e-8, 3e-7)))
            layer.weight.copy_(near + torch.randn(width, width) * 1e-7)
        layers += [layer, make()]
    return nn.Sequential(*layers)


SPOILT: dict[str, Callable[[nn.Module, random.Random], None]] = {
    "subnormal weights": _subnormal,
    "huge biases": _huge_biases,
    "large weights": _large_weights,
    "cancellation": _cancelling,
}
NETWORKS = ("program", *SPOILT, "near identity")


def drawn_network(
    kind: str, rng: random.Random, dtype: torch.dtype
) -> tuple[nn.Module, list[tuple[int, ...]]]:
    """A network of one of `NETWORKS`, and the shapes of its inputs per sample."""
    seed = rng.getrandbits(40)
    torch.manual_seed(seed)
    if kind == "near identity":
        chain = _chain(rng)
        return chain.to(dtype).eval(), [(chain[0].in_features,)]  # type: ignore[index]
    model, shapes = random_model(seed)
    model = model.to(dtype)
    if kind in SPOILT:
        with torch.no_grad():
            SPOILT[kind](model, rng)
    return model.eval(), shapes


def drawn_region(
    kind: str, shape: tuple[int, ...], batch: int, rng: random.Random, dtype: torch.dtype
) -> Any:
    """A region of one of `REGIONS`."""
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    center = torch.randn((batch, *shape), generator=generator, dtype=torch.float64)
    center = (center * rng.choice((1.0, 1.0, 1e-6, 30.0))).to(dtype)
    eps = rng.choice(RADII)
    if kind == "point":
        return rng.choice((bg.LinfBall, bg.L2Ball, bg.L1Ball))(center, 0.0)
    if kind == "box":
        radius = torch.rand(center.shape, generator=generator, dtype=torch.float64) * eps
        radius = (radius * (torch.rand(center.shape, generator=generator) < 0.7)).to(dtype)
        return bg.Box(center - radius, center + radius)
    clip = (0.1, 0.9) if kind.startswith("clipped") else None
    if clip is not None:
        center = center.abs().clamp(0.125, 0.875)
    made = {"l1": bg.L1Ball, "l2": bg.L2Ball, "clipped l2": bg.L2Ball}.get(kind, bg.LinfBall)
    return made(center, eps, clip)


def point_of(region: Any, rng: random.Random) -> np.ndarray:
    """A real point of a region: extreme ones, float points, and points between floats."""
    if isinstance(region, bg.Box):
        return rational_point(region, rng)
    center, eps = fractions(region.center), Fraction(region.eps)
    out = center.copy().reshape(len(center), -1)
    for row in out:
        if isinstance(region, LpBall):
            _move_in_ball(row, region.p, eps, rng)
        else:
            for i in range(len(row)):
                row[i] += rng.choice((-1, 1, Fraction(rng.randint(-48, 48), 48))) * eps
    if region.clip is not None:
        low, high = (Fraction(end) for end in region.clip)
        for row in out:
            row[:] = [min(max(value, low), high) for value in row]
    return out.reshape(center.shape)


def _move_in_ball(row: np.ndarray, p: float, eps: Fraction, rng: random.Random) -> None:
    """To a tip, to a point of a face or of the sphere, or less far."""
    share = rng.choice((Fraction(1), Fraction(rng.randint(0, 30), 30)))
    if len(row) == 1:
        row[0] += rng.choice((-1, 1)) * share * eps
        return
    i, j = rng.sample(range(len(row)), 2)
    a, b, c = rng.choice(((1, 0, 1), (3, 4, 5), (5, 12, 13), (20, 21, 29)))
    c = a + b if p == 1.0 else c
    row[i] += rng.choice((-1, 1)) * share * eps * Fraction(a, c)
    row[j] += rng.choice((-1, 1)) * share * eps * Fraction(b, c)
