"""Symbolic intervals that carry the rounding of their own centre and generators.

A value lies within `error` of `center + Σ_k Σ_s block_k[s]·e_{k,s}`, for some symbols in [−1, 1],
as real numbers: what is stored is exact, and what rounding took is charged to `error`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from boundgraph.domains.linear_form import Lines
from boundgraph.domains.rounding import Outward, Precision, grown
from boundgraph.domains.symbolic import Symbolic, diagonal


class SoundSymbolic(Symbolic):
    """A zonotope and a bound on what rounding took from it.

    Args:
        center, blocks: as in `Symbolic`.
        error: of the value's shape, not negative; None means zero.
        precision: constants of the dtype.
    """

    __slots__ = ("error", "precision")

    def __init__(
        self,
        center: Tensor,
        blocks: Mapping[str, Tensor],
        error: Tensor | None,
        precision: Precision,
    ) -> None:
        super().__init__(center, blocks)
        self.error, self.precision = error, precision

    def reach(self, symbols: int) -> Tensor | None:
        """Above the sum of the generators' sizes; None where there are none.

        Args:
            symbols: how many there are in all blocks together.
        """
        if not self.blocks:
            return None
        # A sum of a few roundings less, and one that stays in a cache.
        p, most = self.precision, min(16, math.ceil(math.sqrt(symbols)))
        parts: list[Tensor] = []
        for block in self.blocks.values():
            pieces = torch.tensor_split(block, most)
            parts += [pieces[i].abs().sum(0) for i in range(most)]
        terms = -(-symbols // most) + len(parts) + 4
        total = sum(parts[1:], parts[0]) * (1.0 + 2.0 * p.gamma(terms))
        return grown(total + 16.0 * (symbols + 4) * p.tiny, p)

    def enclosure(self, symbols: int) -> Outward:
        """The interval around it."""
        p, radius = self.precision, self.reach(symbols)
        parts = [part for part in (radius, self.error) if part is not None]
        if not parts:
            return Outward(self.center, self.center, p)
        return Outward.ball(self.center, grown(sum(parts[1:], parts[0]), p), p)

    def through_lines(
        self,
        lines: Lines,
        symbols: int,
        block: str,
        batch_dim: int | None,
        features: tuple[int, ...],
    ) -> SoundSymbolic:
        """Through a function between two lines of the upper one's slope, which hold exactly.

        The new symbol of an element takes the gap between the lines and all errors so far.
        """
        p, slope = self.precision, lines.upper_slope
        down, up = lines.lower_offset, lines.upper_offset
        middle = down * 0.5 + up * 0.5
        scaled = slope * self.center
        center = scaled + middle
        u = 2.0 * p.unit
        gap = (up - middle).maximum(middle - down).clamp(min=0.0)
        gap = gap + (scaled.abs() + center.abs()) * u + 16.0 * (symbols + 4) * p.tiny
        reach = self.reach(symbols)
        if reach is not None:
            gap = gap + slope.abs() * reach * u
        if self.error is not None:
            gap = gap + slope.abs() * self.error
        blocks = {name: slope * generators for name, generators in self.blocks.items()}
        new = SoundSymbolic(center, blocks, None, p)
        new.blocks[block] = diagonal(grown(gap, p), batch_dim, features)
        return new


def fresh(
    box: Outward, block: str, batch_dim: int | None, features: tuple[int, ...]
) -> SoundSymbolic:
    """An interval as a zonotope with one symbol per element."""
    blocks = {block: diagonal(box.radius, batch_dim, features)}
    return SoundSymbolic(box.center, blocks, None, box.precision)
