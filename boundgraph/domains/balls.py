"""Balls of a p-norm: their enclosing box, and linear functions over them by the dual norm."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.rounding import Precision, grown
from boundgraph.domains.windowed import Windowed

_BALL_BLOCK = re.compile(r"\.ball\.(?P<norm>[0-9.]+)$")


class BallInterval(Interval):
    """The box around a ball (cut to its clip range), which still knows the ball.

    Args:
        lower, upper: ends of the box.
        middle: centre of the ball, of the box's shape.
        reach: radius of the ball of each sample, `[batch]`.
        norm: p >= 1, finite.
    """

    __slots__ = ("middle", "norm", "reach")

    def __init__(
        self, lower: Tensor, upper: Tensor, middle: Tensor, reach: Tensor, norm: float
    ) -> None:
        super().__init__(lower, upper)
        self.middle, self.reach, self.norm = middle, reach, norm


def samples_of(box: Interval, at: Any) -> Interval:
    """The part of a region that belongs to some samples (a slice or indices of dimension 0)."""
    if isinstance(box, BallInterval):
        return BallInterval(box.lower[at], box.upper[at], box.middle[at], box.reach[at], box.norm)
    return Interval(box.lower[at], box.upper[at])


def dual(norm: float) -> float:
    """q with 1/p + 1/q = 1."""
    if norm == 1.0:
        return math.inf
    return norm / (norm - 1.0)


def safe_norm(x: Tensor, norm: float, dim: int) -> Tensor:
    """‖x‖ over a dimension whose powers neither overflow nor underflow.

    An underflow would give a norm that is too small, and a bound that is wrong.
    """
    if norm in (1.0, math.inf):
        return torch.linalg.vector_norm(x, norm, dim=dim)
    # Any constant peak gives the same norm, so that it needs no gradient.
    peak = x.abs().amax(dim, keepdim=True).detach()
    peak = torch.where(peak > 0, peak, 1.0)
    return torch.linalg.vector_norm(x / peak, norm, dim=dim) * peak.squeeze(dim)


def norm_above(x: Tensor, norm: float, dim: int, elements: int, p: Precision) -> Tensor:
    """Above ‖x‖ over a dimension, for the 2-norm and the largest element.

    x is divided by its largest element, so that squares neither overflow nor matter where they
    underflow; each is then off by a few roundings, their sum by γ, and the root by one.

    Args:
        elements: length of the dimension.
    """
    peak = x.abs().amax(dim)
    if norm == math.inf:
        return peak
    scaled = x / torch.where(peak > 0, peak, 1.0).unsqueeze(dim)
    total = (scaled * scaled).sum(dim)
    total = total * (1.0 + 2.0 * p.gamma(elements + 16)) + 16.0 * (elements + 4) * p.tiny
    return grown(total.sqrt() * peak, p)


def least_over_ball(
    coeff: Tensor, middle: Tensor, reach: Tensor, norm: float, *, rank: int, samples: bool
) -> Tensor:
    """The least value of `coeff·x` over a ball of each sample, by Hölder's inequality.

    `coeff·x = coeff·middle + coeff·(x − middle) >= coeff·middle − ‖coeff‖_q·reach`, with
    equality at a point of the ball.

    Args:
        coeff: `[rows, batch or 1, ...]`.
        middle: `[batch, ...]`.
        reach: `[batch]`.
        norm: p.
        rank: of `middle`.
        samples: keep the samples apart; otherwise their least values add up, as the region
            of several samples is the product of their balls.

    Returns:
        `[rows, batch]`, or `[rows]`.
    """
    flat = coeff.flatten(2) if rank > 1 else coeff.unsqueeze(-1)
    point = middle.flatten(1) if rank > 1 else middle.unsqueeze(-1)
    least = (flat * point).sum(-1) - safe_norm(flat, dual(norm), -1) * reach
    return least if samples else least.sum(-1)


def ball_block(name: str, norm: float) -> str:
    """The name of a block whose symbols of each sample lie in the unit ball of a p-norm."""
    return f"{name}.ball.{norm:g}"


def block_norm(name: str) -> float | None:
    """p of a block made by `ball_block`; None where each symbol ranges over [-1, 1] by itself."""
    found = _BALL_BLOCK.search(name)
    return float(found["norm"]) if found else None


def concretize_block(name: str, block: Tensor | Windowed) -> Tensor:
    """How far a block moves each element: the dual norm over its symbols."""
    norm = block_norm(name)
    if isinstance(block, Windowed):
        return block.reach(None if norm is None else lambda g: safe_norm(g, dual(norm), -1))
    if norm is None:
        return block.abs().sum(0)
    return safe_norm(block, dual(norm), 0)


def inside_ball(points: Tensor, box: BallInterval) -> Tensor:
    """Points pulled along the ray to the centre until they lie inside the ball and its box.

    The radius aimed at is a hair below the true one, and elements are rounded towards the
    centre, so that rounding cannot leave the ball; cutting to the box afterwards moves every
    element towards the centre, too.
    """
    middle = box.middle.double()
    delta = points.double() - middle
    size = ball_size(delta, box.norm)
    reach = box.reach.double() * (1.0 - 1e-6)
    scale = torch.where(size > reach, reach / torch.where(size > 0, size, 1.0), 1.0)
    pulled = middle + delta * scale.reshape((-1,) + (1,) * (delta.dim() - 1))
    near = pulled.to(points.dtype)
    beyond = (near.double() - middle).abs() > (pulled - middle).abs()
    near = torch.where(beyond, torch.nextafter(near, box.middle), near)
    return torch.minimum(torch.maximum(near, box.lower), box.upper)


def ball_size(delta: Tensor, norm: float) -> Tensor:
    """‖delta‖_p of each sample, `[batch]`."""
    return torch.linalg.vector_norm(delta.reshape((delta.shape[0], -1)), norm, dim=1)


def steepest(gradient: Tensor, norm: float) -> Tensor:
    """The direction of p-norm 1 along which a sample's linear function grows fastest."""
    flat = gradient.reshape((gradient.shape[0], -1))
    flat = torch.where(torch.isnan(flat), 0.0, flat)
    if norm == 1.0:
        largest = flat.abs().argmax(1, keepdim=True)
        way = torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign())
    else:
        # The peak is taken out first: powers of tiny gradients underflow.
        peak = flat.abs().amax(1, keepdim=True)
        scaled = flat / torch.where(peak > 0, peak, 1.0)
        way = scaled.sign() * scaled.abs() ** (dual(norm) - 1.0)
        size = torch.linalg.vector_norm(way, norm, dim=1, keepdim=True)
        way = way / torch.where(size > 0, size, 1.0)
    return way.reshape(gradient.shape)
