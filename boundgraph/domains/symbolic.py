"""Symbolic intervals: a centre plus linear dependence on named blocks of symbols.

This is the sound form of the symbolic intervals of MixTrain (arXiv 1811.02625) and
Neurify (arXiv 1809.08098): a value is `center + Σ_k Σ_s block_k[s] · e_{k,s}` with every
symbol `e` in [-1, 1]. One block belongs to each bounded input (the linear dependence on
the input, scaled by its radius) and one to each relaxed op (its error terms). A block
has shape `[symbols, *value shape]` and its symbols are private to each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.balls import concretize_block
from boundgraph.domains.interval import Interval


class Symbolic:
    """A zonotope.

    Args:
        center: tensor of the value's shape.
        blocks: generators by block name, each `[symbols, *center.shape]`, or a `Windowed` inside a
            program.
    """

    __slots__ = ("blocks", "center")

    def __init__(self, center: Tensor, blocks: Mapping[str, Any]) -> None:
        self.center = center
        self.blocks = dict(blocks)

    def concretize(self) -> Interval:
        """The tightest interval around the zonotope: centre ± Σ|generator|.

        A block of a p-ball moves an element by the dual norm of its generators instead.
        """
        radius = None
        for name, block in self.blocks.items():
            part = concretize_block(name, block)
            radius = part if radius is None else radius + part
        if radius is None:
            return Interval.point(self.center)
        return Interval.from_center_radius(self.center, radius)

    def map(self, center: Callable[[Tensor], Tensor], block: Callable[[Any], Any]) -> Symbolic:
        """One function for the centre, one for each block."""
        return Symbolic(center(self.center), {k: block(v) for k, v in self.blocks.items()})

    def combine(self, other: Symbolic, sign: float = 1.0) -> Symbolic:
        """`self + sign·other`, adding the blocks they share symbol by symbol."""
        blocks = dict(self.blocks)
        for name, block in other.blocks.items():
            term = block if sign == 1.0 else block * sign
            blocks[name] = blocks[name] + term if name in blocks else term
        center = other.center if sign == 1.0 else other.center * sign
        return Symbolic(self.center + center, blocks)

    def with_block(self, name: str, block: Any) -> Symbolic:
        if name in self.blocks:
            raise ValueError(f"block {name!r} exists already")
        return Symbolic(self.center, {**self.blocks, name: block})


def diagonal(values: Tensor, batch_dim: int | None, features: tuple[int, ...]) -> Tensor:
    """One symbol per element of a sample: generators `[n, *values.shape]`.

    Args:
        values: magnitudes, any shape.
        batch_dim: the dimension that separates samples, or None where there is none.
        features: shape of `values` without `batch_dim`; `n` is its number of elements.
    """
    if batch_dim is None:
        return (
            torch.diag_embed(values.reshape(-1))
            .unflatten(1, features or (1,))
            .reshape((-1, *features))
        )
    per_sample = values.movedim(batch_dim, 0).flatten(1) if features else values.unsqueeze(1)
    square = torch.diag_embed(per_sample).movedim(1, 0)
    if not features:
        return square.squeeze(2)
    return square.unflatten(2, features).movedim(1, batch_dim + 1)
