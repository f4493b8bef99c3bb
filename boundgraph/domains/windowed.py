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

# Kernels in all places of a window make a matrix; up to so many entries one product with it is
# quicker than a convolution of windows, although it multiplies zeros, too.
_MATRIX = 1 << 18
# How many parts the channels of symbols are taken in where their products are large.
_PARTS = 8


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

    def meets(self, grid: Pair) -> bool:
        """Whether some unit sees the image at all, and not only what was put around it."""
        stops = [self.start[i] + self.step[i] * (grid[i] - 1) + self.size[i] for i in (0, 1)]
        return all(self.start[i] < self.image[i] and stops[i] > 0 for i in (0, 1))

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

    def positions(self, grid: Pair, device: Any) -> Tensor:
        """Flat position of the symbol of each entry of each place; `symbols` outside the image."""
        flat = torch.arange(0, 1, device=device)
        inside = flat == 0
        for i in (0, 1):
            places = torch.arange(grid[i], device=device) * self.step[i] + self.start[i]
            at = places.unsqueeze(1) + torch.arange(self.size[i], device=device)
            # [height, width, rows, columns]
            at = at.reshape((-1, 1, self.size[0], 1) if i == 0 else (1, grid[1], 1, self.size[1]))
            flat = flat * self.image[i] + at
            inside = inside & (at >= 0) & (at < self.image[i])
        area = math.prod(self.image)
        channel = torch.arange(self.channels, device=device).reshape(-1, 1, 1)
        found = flat.unsqueeze(2) + channel * area
        return torch.where(inside.unsqueeze(2), found, self.symbols).flatten()

    def patches(self, symbols: Tensor, grid: Pair) -> Tensor:
        """What each unit sees of an image: `[batch, *grid, channels, *size]`."""
        found = self.cut(symbols, grid).unfold(2, self.size[0], self.step[0])
        return found.unfold(3, self.size[1], self.step[1]).movedim(1, 3).contiguous()


def _pair(values: Any) -> Pair:
    first, second = values
    return first, second


class Windowed:
    """Generators of a value `[batch, channels, height, width]`.

    Args:
        window: where they lie.
        features: channels, height and width of the value.
        scale: `[batch, …]`, sizes of the symbols, an image.
        coeff: `[channels, batch or 1, height or 1, width or 1, *window]`; where `window.own`
            `[batch, channels, height, width]`, or None for 1.
        shared: all samples and places have the same coefficients.
        factor: `[batch, channels, height, width]`, of shared coefficients; None for 1.
        flat: the value is `[batch, channels · height · width]`.
    """

    __slots__ = ("coeff", "factor", "features", "flat", "scale", "shared", "window")

    def __init__(
        self,
        window: Window,
        features: tuple[int, ...],
        scale: Tensor,
        coeff: Tensor | None = None,
        *,
        shared: bool = False,
        factor: Tensor | None = None,
        flat: bool = False,
    ) -> None:
        self.window, self.features, self.scale = window, features, scale
        self.coeff, self.shared, self.factor, self.flat = coeff, shared, factor, flat

    @classmethod
    def diagonal(cls, values: Tensor, features: tuple[int, ...]) -> Windowed:
        """One symbol per element of a value with these features, of size `values`."""
        channels, height, width = features
        window = Window(channels, (height, width), own=True)
        return cls(window, features, values)

    def __mul__(self, other: Tensor | float) -> Windowed:
        """Times a number, or a factor for each element of the value."""
        if isinstance(other, float | int):
            return (
                self * (torch.ones_like(self.scale) * other)
                if self.coeff is None
                else (self._with(self.coeff * other, self.factor))
            )
        if self.window.own:
            return self._with(other if self.coeff is None else self.coeff * other)
        if self.shared:
            return self._with(self.coeff, other if self.factor is None else self.factor * other)
        return self._with(self._full() * _spread(other))

    def __add__(self, other: Windowed) -> Windowed:
        both = self.window.union(other.window)
        assert both is not None
        if both.own:
            return self._with(self._own() + other._own())
        coeff = self._widened(both) + other._widened(both)
        shared = all(part._one_kernel for part in (self, other))
        return Windowed(both, self.features, self.scale, coeff, shared=shared)

    def flattened(self) -> Windowed:
        found = self._with(self.coeff, self.factor)
        found.flat = True
        return found

    def reach(self, norm: Any) -> Tensor:
        """How far the symbols move each element.

        Args:
            norm: from the generators of an element to that distance; None for their sum.
        """
        scale, window = self.scale.abs(), self.window
        if window.own:
            found = scale if self.coeff is None else scale * self.coeff.abs()
        elif norm is None and self.shared:
            kernels = self._kernels().abs()
            found = F.conv2d(window.cut(scale, self.grid), kernels, stride=window.step)
            found = found if self.factor is None else found * self.factor.abs()
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
        coeff = self._at_all_places()
        for i in (0, 1):
            coeff = _placed(coeff, self.grid[i], i, window)
        whole = (coeff * scale.unsqueeze(1).unsqueeze(1)).permute(4, 5, 6, 1, 0, 2, 3).flatten(0, 2)
        return whole.flatten(2) if self.flat else whole

    def convolved(
        self,
        weight: Tensor,
        features: tuple[int, ...],
        *,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
    ) -> Windowed:
        """The same symbols behind a convolution.

        Args:
            weight: `[outputs, channels, *kernel]`, of one group.
            features: of the result.
        """
        grid = _pair(features[1:])
        after = self.window.behind(kernel, stride, padding, dilation)
        if self.window.own:
            rows = _dilated(weight, kernel, dilation).unsqueeze(1).unsqueeze(1).unsqueeze(1)
            if self.coeff is not None:
                rows = rows * after.patches(self.coeff, grid)
            return Windowed(after, features, self.scale, rows, shared=self.coeff is None)
        reads = Window(self.features[0], self.grid).behind(kernel, stride, padding, dilation)
        if self.shared and self.factor is not None and reads.entries * after.entries <= _MATRIX:
            rows = _dilated(weight, kernel, dilation).unsqueeze(1).unsqueeze(1).unsqueeze(1)
            rows = (rows * reads.patches(self.factor, grid)).flatten(4)
            coeff = torch.matmul(rows, self._kernels_at(reads))
            coeff = coeff.unflatten(4, (after.channels, *after.size))
            return Windowed(after, features, self.scale, coeff)
        # Coefficients of places outside the value are 0, as what a convolution reads there.
        padded = F.pad(self._at_all_places(), (0,) * 6 + (padding[1],) * 2 + (padding[0],) * 2)
        total: Any = None
        for y in range(kernel[0]):
            line = _every(padded, 2, y * dilation[0], stride[0], grid[0])
            terms: Any = None
            for x in range(kernel[1]):
                part = _every(line, 3, x * dilation[1], stride[1], grid[1])
                moved = torch.tensordot(weight[:, :, y, x], part, 1)
                moved = _shifted(
                    moved, 1, x * dilation[1] * self.window.step[1], self.window, after
                )
                terms = moved if terms is None else terms + moved
            terms = _shifted(terms, 0, y * dilation[0] * self.window.step[0], self.window, after)
            total = terms if total is None else total + terms
        return Windowed(after, features, self.scale, total)

    def times(self, weight: Tensor, outputs: int) -> Tensor:
        """Generators `[symbols, batch, outputs]` of a flat value times `weight` transposed."""
        window, scale, channels = self.window, _columns(self.scale), self.features[0]
        if window.own or self.shared:
            # A weight that is transposed in name only would make its product so, too.
            rows = weight.t().contiguous()
            if self.shared:
                return self._shared_times(rows.unflatten(0, (channels, -1)), outputs)
            own = scale if self.coeff is None else scale * _columns(self.coeff)
            return own * rows.unsqueeze(1)
        places = weight.unflatten(1, (channels, -1)).permute(2, 1, 0).contiguous()
        # [places, entries · batch, channels]
        coeff = self._full().flatten(4).flatten(2, 3).permute(2, 3, 1, 0).flatten(1, 2).contiguous()
        products = torch.bmm(coeff, places).unflatten(1, (window.entries, -1)).flatten(0, 1)
        at = window.positions(self.grid, weight.device)
        return _added_up(products, at, window.symbols) * scale

    def _shared_times(self, weight: Tensor, outputs: int) -> Tensor:
        """`times` where kernels are shared.

        The products of all entries take several times the memory of the result, and fresh memory
        is what costs time on a CPU. So they are made for a few channels of symbols at a time.

        Args:
            weight: `[channels, places, outputs]`.
        """
        window, places = self.window, math.prod(self.grid)
        rows = weight.unsqueeze(2)
        if self.factor is not None:
            factor = self.factor.flatten(2).permute(1, 2, 0).contiguous()
            rows = rows * factor.unsqueeze(3)
        kernels = self._kernels().flatten(2).permute(1, 2, 0)
        at = window.positions(self.grid, weight.device)
        at = at.unflatten(0, (places, window.channels, -1)).permute(1, 2, 0)
        area, scale = math.prod(window.image), _columns(self.scale)
        found = []
        for channel in range(0, window.channels, _some(window.channels)):
            count = min(_some(window.channels), window.channels - channel)
            some = kernels.narrow(0, channel, count).flatten(0, 1)
            products = torch.mm(some, rows.flatten(1)).unflatten(1, (places, -1, outputs))
            # Those outside the image are beyond these channels.
            own = (at.narrow(0, channel, count).flatten() - channel * area).clamp(max=count * area)
            part = _added_up(products.flatten(0, 1), own, count * area)
            found.append(part * scale.narrow(0, channel * area, count * area))
        return torch.cat(found)

    def _kernels_at(self, reads: Window) -> Tensor:
        """Shared kernels in each place of a window: `[entries of it, entries of their windows]`."""
        kernels = self._kernels()
        eye = torch.eye(reads.entries, dtype=kernels.dtype, device=kernels.device)
        places = eye.unflatten(1, (reads.channels, *reads.size))
        return F.conv_transpose2d(places, kernels, stride=self.window.step).flatten(1)

    @property
    def grid(self) -> Pair:
        """Height and width of the value."""
        return _pair(self.features[1:])

    def _with(self, coeff: Tensor | None, factor: Tensor | None = None) -> Windowed:
        kept: Any = {"shared": self.shared, "factor": factor, "flat": self.flat}
        return Windowed(self.window, self.features, self.scale, coeff, **kept)

    @property
    def _one_kernel(self) -> bool:
        """All places and samples have the same coefficients, and no factors."""
        return self.coeff is None or (self.shared and self.factor is None)

    def _kernels(self) -> Tensor:
        """Shared coefficients, `[channels, *window]`."""
        assert self.coeff is not None
        return self.coeff[:, 0, 0, 0]

    def _own(self) -> Tensor:
        return torch.ones_like(self.scale) if self.coeff is None else self.coeff

    def _full(self) -> Tensor:
        """Coefficients on the window."""
        if not self.window.own:
            assert self.coeff is not None
            return self.coeff if self.factor is None else self.coeff * _spread(self.factor)
        eye = torch.eye(
            self.window.channels, dtype=self.scale.dtype, device=self.scale.device
        ).reshape(self.window.channels, 1, 1, 1, self.window.channels, 1, 1)
        return eye if self.coeff is None else eye * _spread(self.coeff)

    def _at_all_places(self) -> Tensor:
        coeff = self._full()
        return coeff.expand(-1, -1, *self.grid, -1, -1, -1) if self._one_kernel else coeff

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


def _columns(image: Tensor) -> Tensor:
    """An image `[batch, …]` as `[elements, batch, 1]`."""
    return image.flatten(1).t().unsqueeze(2)


def _some(channels: int) -> int:
    """How many channels go through at a time."""
    return -(-channels // _PARTS)


def _added_up(products: Tensor, at: Tensor, symbols: int) -> Tensor:
    """Windows added up where their symbols are; a row of its own for those outside is dropped."""
    empty = torch.zeros_like(products.narrow(0, 0, 1)).repeat_interleave(symbols + 1, 0)
    return empty.index_add(0, at, products).narrow(0, 0, symbols)


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
