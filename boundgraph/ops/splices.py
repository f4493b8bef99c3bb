"""Pieces put into a tensor at positions that are known: slices, diagonals."""

from __future__ import annotations

from typing import Any

import torch

from boundgraph.ir.program import Value
from boundgraph.ops._spec import Lowering, lowers
from boundgraph.ops.views import reshape_to

aten = torch.ops.aten


@lowers(torch.select_scatter, "Tensor.select_scatter", aten.select_scatter.default)
def _(b: Lowering, input: Value, src: Value, dim: int, index: int) -> Value:
    at, shape = b.dim(input, dim), tuple(b.shape(input))
    size = shape[at]
    if not isinstance(size, int):
        return b.reject("an index along the batch dimension mixes samples")
    piece = reshape_to(b, src, (*shape[:at], 1, *shape[at + 1 :]))
    return _spliced(b, input, piece, at, [index % size])


@lowers(torch.slice_scatter, "Tensor.slice_scatter", aten.slice_scatter.default)
def _(
    b: Lowering,
    input: Value,
    src: Value,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Value:
    at = b.dim(input, dim)
    size = b.shape(input)[at]
    if not isinstance(size, int):
        return b.reject("a slice of the batch dimension mixes samples")
    return _spliced(b, input, src, at, list(range(*slice(start, end, step).indices(size))))


def _spliced(b: Lowering, x: Value, piece: Value, dim: int, places: list[int]) -> Value:
    """x with the slices of a piece at given places."""
    size = b.shape(x)[dim]
    assert isinstance(size, int)
    order = list(range(size))
    for i, place in enumerate(places):
        order[place] = size + i
    both = b.emit("cat", x, piece, dim=dim)
    with torch.device("cpu"):
        index = torch.tensor(order)
    return b.emit("index_select", both, b.tensor(index), dim=dim)


@lowers(torch.diagonal_scatter, "Tensor.diagonal_scatter", aten.diagonal_scatter.default)
def _(
    b: Lowering, input: Value, src: Value, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Value:
    shape, rank = tuple(b.shape(input)), len(b.shape(input))
    first, second = b.dim(input, dim1), b.dim(input, dim2)
    rows, columns = shape[first], shape[second]
    if not (isinstance(rows, int) and isinstance(columns, int)):
        return b.reject("a diagonal across the batch dimension mixes samples")
    with torch.device("cpu"):
        places = torch.arange(rows * columns).reshape(rows, columns).diagonal(offset).tolist()
    order = (*(d for d in range(rank) if d not in (first, second)), first, second)
    moved = b.emit("permute", input, dims=order) if order != tuple(range(rank)) else input
    flat = reshape_to(b, moved, (*b.shape(moved)[:-2], rows * columns))
    result = reshape_to(b, _spliced(b, flat, src, rank - 2, places), b.shape(moved))
    back = tuple(order.index(d) for d in range(rank))
    return b.emit("permute", result, dims=back) if back != tuple(range(rank)) else result


@lowers(torch.diag_embed, "Tensor.diag_embed", aten.diag_embed.default)
def _(b: Lowering, input: Value, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Value:
    shape, rank = tuple(b.shape(input)), len(b.shape(input)) + 1
    length = shape[-1]
    if not isinstance(length, int):
        return b.reject("a diagonal across the batch dimension mixes samples")
    side = length + abs(offset)
    with torch.device("cpu"):
        # What is off the diagonal takes the zero behind the elements.
        index = torch.full((side, side), length)
        index.diagonal(offset).copy_(torch.arange(length))
    padded = b.emit("pad", input, pads=(0, 1), mode="constant", value=0.0)
    square = b.emit("index_select", padded, b.tensor(index.reshape(-1)), dim=rank - 2)
    square = reshape_to(b, square, (*shape[:-1], side, side))
    first, second = b.dim(input, dim1, extra=1), b.dim(input, dim2, extra=1)
    others = iter(range(rank - 2))
    order = tuple(
        rank - 2 if d == first else rank - 1 if d == second else next(others) for d in range(rank)
    )
    return b.emit("permute", square, dims=order) if order != tuple(range(rank)) else square
