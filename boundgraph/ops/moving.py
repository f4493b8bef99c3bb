"""Ops that move elements along a dimension (roll, flip), and moves made of several."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.ir.program import Value
from boundgraph.ir.types import Shape
from boundgraph.ops._kinds import structural
from boundgraph.ops._samples import random_shape
from boundgraph.ops._spec import Lowering, OpCase, lowers
from boundgraph.ops.views import reshape_to

aten = torch.ops.aten


def _other_dims(batch_dims: Any, *_: Any, dims: tuple[int, ...], **__: Any) -> int | None:
    """Samples stay where they are if no element moves between them."""
    return None if batch_dims[0] in dims else batch_dims[0]


def _roll(x: Tensor, *, shifts: tuple[int, ...], dims: tuple[int, ...]) -> Tensor:
    return torch.roll(x, shifts, dims)


def _later(dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dim + 1 for dim in dims)


def _sample_roll(rng: random.Random) -> OpCase:
    shape = random_shape(rng)
    dims = tuple(rng.sample(range(len(shape)), rng.randint(1, len(shape))))
    return OpCase((shape,), {"shifts": tuple(rng.randint(-3, 3) for _ in dims), "dims": dims})


def _sample_flip(rng: random.Random) -> OpCase:
    shape = random_shape(rng)
    return OpCase((shape,), {"dims": tuple(rng.sample(range(len(shape)), rng.randint(1, 1)))})


structural(
    "roll",
    _roll,
    lifted=lambda g, *, shifts, dims: _roll(g, shifts=shifts, dims=_later(dims)),
    adjoint=lambda coeff, *, shapes, target, shifts, dims: _roll(
        coeff, shifts=tuple(-shift for shift in shifts), dims=_later(dims)
    ),
    batch=_other_dims,
    sample=_sample_roll,
    summary="shift along dimensions, the end coming back at the start",
)
structural(
    "flip",
    lambda x, *, dims: x.flip(dims),
    lifted=lambda g, *, dims: g.flip(_later(dims)),
    adjoint=lambda coeff, *, shapes, target, dims: coeff.flip(_later(dims)),
    batch=_other_dims,
    sample=_sample_flip,
    summary="reverse dimensions",
)


def _sequence(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


@lowers(torch.roll, "Tensor.roll", aten.roll.default)
def _(b: Lowering, input: Value, shifts: Any, dims: Any = None) -> Value:
    if dims in (None, (), []):
        flat = reshape_to(b, input, (-1,))
        rolled = b.emit("roll", flat, shifts=_sequence(shifts), dims=(0,))
        return reshape_to(b, rolled, b.shape(input))
    at = tuple(b.dim(input, dim) for dim in _sequence(dims))
    return b.emit("roll", input, shifts=_sequence(shifts), dims=at)


@lowers(torch.flip, "Tensor.flip", aten.flip.default)
def _(b: Lowering, input: Value, *dims: Any, **kwargs: Any) -> Value:
    chosen = _sequence(dims[0]) if len(dims) == 1 else dims or _sequence(kwargs["dims"])
    at = tuple(b.dim(input, dim) for dim in chosen)
    return b.emit("flip", input, dims=at) if at else input


@lowers(torch.fliplr, "Tensor.fliplr", aten.fliplr.default)
def _(b: Lowering, input: Value) -> Value:
    return b.emit("flip", input, dims=(1,))


@lowers(torch.flipud, "Tensor.flipud", aten.flipud.default)
def _(b: Lowering, input: Value) -> Value:
    return b.emit("flip", input, dims=(0,))


@lowers(torch.rot90, "Tensor.rot90", aten.rot90.default)
def _(b: Lowering, input: Value, k: int = 1, dims: Any = (0, 1)) -> Value:
    first, second = (b.dim(input, dim) for dim in dims)
    if k % 4 == 0:
        return input
    if k % 4 == 2:
        return b.emit("flip", input, dims=(first, second))
    order = list(range(len(b.shape(input))))
    order[first], order[second] = second, first
    turned = b.emit("permute", input, dims=tuple(order))
    return b.emit("flip", turned, dims=(first if k % 4 == 1 else second,))


def _tiled(b: Lowering, x: Value, counts: tuple[Any, ...]) -> Value:
    """Copies side by side: a new dimension before each, expanded and merged."""
    shape = b.shape(x)
    lead = len(counts) - len(shape)
    shape = (1,) * lead + tuple(shape)
    split: Shape = tuple(entry for size in shape for entry in (1, size))
    spread = tuple(e for count, size in zip(counts, shape, strict=True) for e in (count, size))
    merged = tuple(size * count for count, size in zip(counts, shape, strict=True))
    if all(count == 1 for count in counts):
        return reshape_to(b, x, shape)
    return reshape_to(b, b.emit("expand", reshape_to(b, x, split), shape=spread), merged)


@lowers("Tensor.repeat", aten.repeat.default)
def _(b: Lowering, input: Value, *repeats: Any, **kwargs: Any) -> Value:
    counts = _sequence(repeats[0]) if len(repeats) == 1 else repeats or kwargs["repeats"]
    return _tiled(b, input, tuple(counts))


@lowers(torch.tile, "Tensor.tile", aten.tile.default)
def _(b: Lowering, input: Value, *dims: Any, **kwargs: Any) -> Value:
    counts = _sequence(dims[0]) if len(dims) == 1 else dims or tuple(kwargs["dims"])
    lead = len(b.shape(input)) - len(counts)
    return _tiled(b, input, (1,) * lead + tuple(counts))


@lowers(torch.repeat_interleave, "Tensor.repeat_interleave", aten.repeat_interleave.self_int)
def _(b: Lowering, input: Value, repeats: Any, dim: int | None = None, **_: Any) -> Value:
    if not isinstance(repeats, int):
        return b.reject(
            "repeat_interleave with a tensor of counts has no bound rule",
            help="use a number, or index_select with fixed indices",
        )
    if dim is None:
        input, dim = reshape_to(b, input, (-1,)), 0
    at, shape = b.dim(input, dim), tuple(b.shape(input))
    apart = reshape_to(b, input, (*shape[: at + 1], 1, *shape[at + 1 :]))
    wide = b.emit("expand", apart, shape=(*shape[: at + 1], repeats, *shape[at + 1 :]))
    return reshape_to(b, wide, (*shape[:at], shape[at] * repeats, *shape[at + 1 :]))


@lowers(torch.movedim, "Tensor.movedim", torch.moveaxis, "Tensor.moveaxis")
@lowers(aten.movedim.int, aten.movedim.intlist)
def _(b: Lowering, input: Value, source: Any, destination: Any) -> Value:
    rank = len(b.shape(input))
    origins = [b.dim(input, dim) for dim in _sequence(source)]
    places = [b.dim(input, dim) for dim in _sequence(destination)]
    rest = iter(dim for dim in range(rank) if dim not in origins)
    taken = dict(zip(places, origins, strict=True))
    order = tuple(taken[dim] if dim in taken else next(rest) for dim in range(rank))
    return input if order == tuple(range(rank)) else b.emit("permute", input, dims=order)


def _regroup(
    b: Lowering, x: Value, shape: Shape, order: tuple[int, ...], result: tuple[Any, ...]
) -> Value:
    """Reshape, permute, reshape."""
    return reshape_to(b, b.emit("permute", reshape_to(b, x, shape), dims=order), result)


@lowers(F.pixel_shuffle, aten.pixel_shuffle.default)
def _(b: Lowering, input: Value, upscale_factor: int) -> Value:
    *lead, channels, height, width = b.shape(input)
    r, n = upscale_factor, len(lead)
    left = channels // (r * r)  # type: ignore[operator]
    order = (*range(n), n, n + 3, n + 1, n + 4, n + 2)
    split = (*lead, left, r, r, height, width)
    return _regroup(b, input, split, order, (*lead, left, height * r, width * r))


@lowers(F.pixel_unshuffle, aten.pixel_unshuffle.default)
def _(b: Lowering, input: Value, downscale_factor: int) -> Value:
    *lead, channels, height, width = b.shape(input)
    r, n = downscale_factor, len(lead)
    high, wide = height // r, width // r  # type: ignore[operator]
    split = (*lead, channels, high, r, wide, r)
    order = (*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return _regroup(b, input, split, order, (*lead, channels * r * r, high, wide))


@lowers(aten.channel_shuffle.default, torch.channel_shuffle, aten.native_channel_shuffle.default)
@lowers(torch.native_channel_shuffle)
def _(b: Lowering, input: Value, groups: int) -> Value:
    batch, channels, *rest = b.shape(input)
    split = (batch, groups, channels // groups, *rest)  # type: ignore[operator]
    order = (0, 2, 1, *range(3, len(split)))
    return _regroup(b, input, split, order, (batch, channels, *rest))
