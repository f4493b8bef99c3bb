"""Generators of images that depend on a window of the symbols, not on all of them.

A unit of a convolution depends on a patch of its input, and through further convolutions on
a larger one. Its generators are kept as coefficients on that patch; the size of each symbol
(an input's radius, an op's error) is kept apart, because it belongs to the symbol. Outside
the image symbols have size 0, so that coefficients there count for nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Which symbols a unit at `position` depends on: `start + step·position`, and how many.

    Args:
        channels: of the symbols.
        image: height and width of the symbols.
        start, step, size: by dimension, height first.
        own: a unit depends on the symbol at its own place and channel alone.
    """

    channels: int
    image: Pair
    start: Pair = (0, 0)
    step: Pair = (1, 1)
    size: Pair = (1, 1)
    own: bool = False

    @property
    def entries(self) -> int:
        """Coefficients of one unit."""
        return 1 if self.own else self.channels * math.prod(self.size)

    @property
    def symbols(self) -> int:
        return self.channels * math.prod(self.image)

    def behind(self, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Window:
        """The window of a convolution's units."""
        at = range(2)
        return Window(
            self.channels,
            self.image,
            _pair(self.start[i] - self.step[i] * padding[i] for i in at),
            _pair(self.step[i] * stride[i] for i in at),
            _pair(self.step[i] * dilation[i] * (kernel[i] - 1) + self.size[i] for i in at),
        )

    def union(self, other: Window) -> Window | None:
        """A window that contains both; None where they move differently."""
        if (self.channels, self.image, self.step) != (other.channels, other.image, other.step):
            return None
        if self.own and other.own:
            return self
        at = range(2)
        start = _pair(min(self.start[i], other.start[i]) for i in at)
        stop = [max(w.start[i] + w.size[i] for w in (self, other)) for i in at]
        size = _pair(stop[i] - start[i] for i in at)
        return Window(self.channels, self.image, start, self.step, size)

    def cut(self, symbols: Tensor, grid: Pair) -> Tensor:
        """The part of an image of symbols that all units together see, 0 outside the image."""
        pads: list[int] = []
        for i in (1, 0):
            stop = self.start[i] + self.step[i] * (grid[i] - 1) + self.size[i]
            # Negative padding cuts.
            pads += [-self.start[i], stop - self.image[i]]
        return F.pad(symbols, pads)

    def patches(self, symbols: Tensor, grid: Pair) -> Tensor:
        """What each unit sees of an image: `[batch, *grid, channels, *size]`."""
        found = self.cut(symbols, grid).unfold(2, self.size[0], self.step[0])
        return found.unfold(3, self.size[1], self.step[1]).movedim(1, 3)


def _pair(values: Any) -> Pair:
    first, second = values
    return first, second


class Windowed:
    """Generators of a value `[batch, channels, height, width]`.

    Args:
        window: where they lie.
        grid: height and width of the value.
        scale: `[batch, …]`, sizes of the symbols, an image.
        coeff: `[channels, batch or 1, height or 1, width or 1, *window]`; where `window.own`
            `[batch, channels, height, width]`, or None for 1.
        shared: all samples and places have the same coefficients.
        flat: the value is `[batch, channels · height · width]`.
    """

    __slots__ = ("coeff", "flat", "grid", "scale", "shared", "window")

    def __init__(
        self,
        window: Window,
        grid: Pair,
        scale: Tensor,
        coeff: Tensor | None = None,
        *,
        shared: bool = False,
        flat: bool = False,
    ) -> None:
        self.window, self.grid, self.scale = window, grid, scale
        self.coeff, self.shared, self.flat = coeff, shared, flat

    @classmethod
    def diagonal(cls, values: Tensor, features: tuple[int, ...]) -> Windowed:
        """One symbol per element of a value with these features, of size `values`."""
        channels, height, width = features
        window = Window(channels, (height, width), own=True)
        return cls(window, (height, width), values)

    def __mul__(self, other: Tensor | float) -> Windowed:
        """Times a number, or a factor for each element of the value."""
        if isinstance(other, float | int):
            coeff = self._own() * other if self.window.own else self._full() * other
            return self._with(coeff, self.shared)
        if self.window.own:
            return self._with(other if self.coeff is None else self.coeff * other)
        return self._with(self._full() * _spread(other))

    def __add__(self, other: Windowed) -> Windowed:
        both = self.window.union(other.window)
        assert both is not None
        if both.own:
            return self._with(self._own() + other._own())
        coeff = self._widened(both) + other._widened(both)
        shared = all(part.shared or part.coeff is None for part in (self, other))
        return Windowed(both, self.grid, self.scale, coeff, shared=shared)

    def flattened(self) -> Windowed:
        kept = {"shared": self.shared, "flat": True}
        return Windowed(self.window, self.grid, self.scale, self.coeff, **kept)

    def reach(self, norm: Any) -> Tensor:
        """How far the symbols move each element.

        Args:
            norm: from the generators of an element to that distance; None for their sum.
        """
        scale, window = self.scale.abs(), self.window
        if window.own:
            found = scale if self.coeff is None else scale * self.coeff.abs()
        elif norm is None and self.shared:
            kernels = self._full()[:, 0, 0, 0].abs()
            found = F.conv2d(window.cut(scale, self.grid), kernels, stride=window.step)
        else:
            terms = (self._full().abs() * window.patches(scale, self.grid)).flatten(4)
            found = (terms.sum(4) if norm is None else norm(terms)).movedim(0, 1)
        return found.flatten(1) if self.flat else found

    def dense(self) -> Tensor:
        """Generators `[symbols, *shape]`."""
        window, scale = self.window, self.scale
        if window.own:
            values = scale if self.coeff is None else scale * self.coeff
            square = torch.diag_embed(values.flatten(1)).movedim(1, 0)
            return square if self.flat else square.unflatten(2, (window.channels, *window.image))
        coeff = self._full()
        for i in (0, 1):
            coeff = _placed(coeff, self.grid[i], i, window)
        whole = (coeff * scale.unsqueeze(1).unsqueeze(1)).permute(4, 5, 6, 1, 0, 2, 3).flatten(0, 2)
        return whole.flatten(2) if self.flat else whole

    def convolved(
        self, weight: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, grid: Pair
    ) -> Windowed:
        """The same symbols behind a convolution.

        Args:
            weight: `[outputs, channels, *kernel]`, of one group.
            grid: height and width of the result.
        """
        after = self.window.behind(kernel, stride, padding, dilation)
        if self.window.own:
            rows = _dilated(weight, kernel, dilation).unsqueeze(1).unsqueeze(1).unsqueeze(1)
            if self.coeff is not None:
                rows = rows * after.patches(self.coeff, grid)
            return Windowed(after, grid, self.scale, rows, shared=self.coeff is None)
        # Coefficients of places outside the value are 0, as what a convolution reads there.
        padded = F.pad(self._at_all_places(), (0,) * 6 + (padding[1],) * 2 + (padding[0],) * 2)
        rows = None
        for y in range(kernel[0]):
            line = _every(padded, 2, y * dilation[0], stride[0], grid[0])
            terms = None
            for x in range(kernel[1]):
                part = _every(line, 3, x * dilation[1], stride[1], grid[1])
                moved = torch.tensordot(weight[:, :, y, x], part, 1)
                moved = _shifted(moved, 1, x * dilation[1] * self.window.step[1], self.window, after)
                terms = moved if terms is None else terms + moved
            terms = _shifted(terms, 0, y * dilation[0] * self.window.step[0], self.window, after)
            rows = terms if rows is None else rows + terms
        return Windowed(after, grid, self.scale, rows)

    def times(self, weight: Tensor, outputs: int) -> Tensor:
        """Generators `[symbols, batch, outputs]` of a flat value times `weight` transposed."""
        window, scale = self.window, self.scale
        if window.own:
            values = scale if self.coeff is None else scale * self.coeff
            return values.flatten(1).t().unsqueeze(2) * weight.t().unsqueeze(1)
        height, width = self.grid
        # [places, channels, batch · window]; one product for each place.
        coeff = self._at_all_places().flatten(2, 3).movedim(2, 0).flatten(2)
        products = torch.bmm(weight.unflatten(1, (-1, height * width)).permute(2, 0, 1), coeff)
        columns = products.unflatten(2, (-1, window.entries)).permute(1, 2, 3, 0).flatten(0, 1)
        canvas = [window.step[i] * (self.grid[i] - 1) + window.size[i] for i in (0, 1)]
        image = F.fold(columns, canvas, window.size, stride=window.step)
        pads: list[int] = []
        for i in (1, 0):
            pads += [window.start[i], window.image[i] - window.start[i] - canvas[i]]
        found = F.pad(image, pads).unflatten(0, (outputs, -1)) * scale
        return found.permute(2, 3, 4, 1, 0).flatten(0, 2)

    def _with(self, coeff: Tensor, shared: bool = False) -> Windowed:
        return Windowed(
            self.window, self.grid, self.scale, coeff, shared=shared, flat=self.flat
        )

    def _own(self) -> Tensor:
        return torch.ones_like(self.scale) if self.coeff is None else self.coeff

    def _full(self) -> Tensor:
        """Coefficients on the window."""
        if not self.window.own:
            assert self.coeff is not None
            return self.coeff
        eye = torch.eye(
            self.window.channels, dtype=self.scale.dtype, device=self.scale.device
        ).reshape(self.window.channels, 1, 1, 1, self.window.channels, 1, 1)
        return eye if self.coeff is None else eye * _spread(self.coeff)

    def _at_all_places(self) -> Tensor:
        coeff = self._full()
        return coeff.expand(-1, -1, *self.grid, -1, -1, -1) if self.shared else coeff

    def _widened(self, window: Window) -> Tensor:
        """Coefficients on a window around this one."""
        pads: list[int] = []
        for i in (1, 0):
            front = self.window.start[i] - window.start[i]
            pads += [front, window.size[i] - self.window.size[i] - front]
        return F.pad(self._full(), pads)


def _spread(factor: Tensor) -> Tensor:
    """A factor for each element of a value, as coefficients see it."""
    return factor.movedim(1, 0).unsqueeze(-1).unsqueeze(-1).unsqueeze(-1)


def _every(x: Tensor, dim: int, start: int, step: int, count: int) -> Tensor:
    part = x.narrow(dim, start, step * (count - 1) + 1)
    return part[(slice(None),) * dim + (slice(None, None, step),)] if step > 1 else part


def _shifted(x: Tensor, i: int, by: int, old: Window, new: Window) -> Tensor:
    """Coefficients on `old` at their place in `new`, along one dimension of the window."""
    ends = (by, new.size[i] - old.size[i] - by)
    return F.pad(x, (0, 0, *ends) if i == 0 else ends) if any(ends) else x


def _dilated(weight: Tensor, kernel: Pair, dilation: Pair) -> Tensor:
    """A kernel with zeros between its entries."""
    for i in (0, 1):
        gap = dilation[i] - 1
        if gap and kernel[i] > 1:
            parts = F.pad(weight.unsqueeze(3 + i), (*(0, 0) * (1 - i), 0, gap))
            weight = parts.flatten(2 + i, 3 + i).narrow(2 + i, 0, dilation[i] * (kernel[i] - 1) + 1)
    return weight


def _placed(coeff: Tensor, count: int, i: int, window: Window) -> Tensor:
    """Coefficients at their symbols, along one dimension: 0 for symbols outside a window."""
    size, length = window.size[i], window.image[i]
    places = torch.arange(count, device=coeff.device).unsqueeze(1)
    symbols = torch.arange(length, device=coeff.device).unsqueeze(0)
    entry = symbols - window.start[i] - window.step[i] * places
    entries = torch.arange(size, device=coeff.device)
    matrix = (entry.unsqueeze(2) == entries).to(coeff.dtype)
    # [places, symbols, entries] on the dimension of places (2 + i) and of entries (5 + i).
    text = "cbhwkyx,hsy->cbhwksx" if i == 0 else "cbhwkyx,wsx->cbhwkys"
    return torch.einsum(text, coeff, matrix)
