"""Linear functions of the input that enclose the output of a model over a region."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boundgraph.domains.balls import BallInterval, least_over_ball
from boundgraph.domains.interval import Interval


@dataclass(frozen=True, eq=False)
class LinearBounds:
    """`lower_weight·x + lower_bias <= f(x) <= upper_weight·x + upper_bias` for x in the region.

    Args:
        lower_weight, upper_weight: one tensor for each perturbed input,
            `[batch, *output features, *input features]`.
        lower_bias, upper_bias: `[batch, *output features]`.
        region: the perturbed inputs' regions, which the inequalities hold on.
    """

    lower_weight: tuple[Tensor, ...]
    lower_bias: Tensor
    upper_weight: tuple[Tensor, ...]
    upper_bias: Tensor
    region: tuple[Interval, ...]

    def evaluate(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The two linear functions at points `[batch, ...]` of the region, one for each input."""
        lower, upper = self.lower_bias, self.upper_bias
        for below, above, x in zip(self.lower_weight, self.upper_weight, inputs, strict=True):
            lower = lower + _apply(below, x, lower)
            upper = upper + _apply(above, x, upper)
        return lower, upper

    def concretize(self) -> Interval:
        """The interval that the linear functions give over the region."""
        lower, upper = self.lower_bias, self.upper_bias
        for below, above, box in zip(
            self.lower_weight, self.upper_weight, self.region, strict=True
        ):
            lower = lower + _least(below, box, lower)
            upper = upper - _least(-above, box, upper)
        return Interval(lower, upper)


def _apply(weight: Tensor, x: Tensor, like: Tensor) -> Tensor:
    """`weight·x` of each sample, shaped like the output."""
    return (_flat(weight, like) * x.reshape((len(x), 1, -1))).sum(-1).reshape(like.shape)


def _least(weight: Tensor, box: Interval, like: Tensor) -> Tensor:
    """The least value of `weight·x` over a region."""
    flat = _flat(weight, like)
    batch = len(flat)
    center, radius = box.center.reshape((batch, 1, -1)), box.radius.reshape((batch, 1, -1))
    least = (flat * center - flat.abs() * radius).sum(-1)
    if isinstance(box, BallInterval):
        middle = box.middle.reshape((batch, -1))
        rows = flat.movedim(1, 0)
        ball = least_over_ball(rows, middle, box.reach, box.norm, rank=2, samples=True)
        least = torch.maximum(least, ball.movedim(0, 1))
    return least.reshape(like.shape)


def _flat(weight: Tensor, like: Tensor) -> Tensor:
    """`[batch, output features, input features]`."""
    return weight.reshape((len(weight), math.prod(like.shape[1:]), -1))


def from_rows(
    forms: Sequence[tuple[Tensor, Tensor | None]],
    rest: Interval | None,
    batch: int,
    features: tuple[int, ...],
    region: tuple[Interval, ...],
) -> LinearBounds:
    """From signed rows of a backward pass: rows of lower bounds, then of negated upper bounds.

    Args:
        forms: per perturbed input coefficients `[2·rows, batch or 1, ...]` and an offset
            `[2·rows, batch or 1]` or None.
        rest: bounds of what does not depend linearly on the inputs, `[batch, *features]`.
        batch: number of samples.
        features: shape of a sample's output.
        region: of the inputs.
    """
    rows = math.prod(features)
    sides: list[tuple[tuple[Tensor, ...], Tensor]] = []
    like = forms[0][0]
    for start, sign in ((0, 1.0), (rows, -1.0)):
        weights: list[Tensor] = []
        bias = like.new_zeros((rows, batch))
        for coeff, offset in forms:
            part = sign * coeff.narrow(0, start, rows)
            part = part.expand((-1, batch, *part.shape[2:])).movedim(0, 1)
            weights.append(part.reshape((batch, *features, *part.shape[2:])))
            if offset is not None:
                bias = bias + sign * offset.narrow(0, start, rows)
        sides.append((tuple(weights), bias.movedim(0, 1).reshape((batch, *features))))
    (lower_weight, lower_bias), (upper_weight, upper_bias) = sides
    if rest is not None:
        lower_bias, upper_bias = lower_bias + rest.lower, upper_bias + rest.upper
    return LinearBounds(lower_weight, lower_bias, upper_weight, upper_bias, region)
