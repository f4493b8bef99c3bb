"""Writes at fixed indices: index_add, index_copy, index_put and assignments."""

from __future__ import annotations

import operator
from typing import Any

import torch

from boundgraph.ir.program import Value
from boundgraph.ir.types import numel
from boundgraph.ops._compose import blank, plain
from boundgraph.ops._contraction import expand_to
from boundgraph.ops._spec import Lowering, lowers
from boundgraph.ops.gather import positive
from boundgraph.ops.scatter import counted, fixed, settled
from boundgraph.ops.selection import where
from boundgraph.ops.views import reshape_to

aten = torch.ops.aten


def add_at(b: Lowering, x: Value, dim: int, index: Value, source: Value) -> Value:
    """x with slices of a source added at indices along one dimension."""
    size = b.shape(x)[dim]
    if not isinstance(size, int):
        return b.reject("an index along the batch dimension mixes samples")
    sums = b.emit("sum_at", source, positive(b, index, size), dim=dim, size=size)
    return b.emit("add", *b.broadcast(x, sums))


def copy_to(b: Lowering, x: Value, dim: int, index: Value, source: Value) -> Value:
    """x with slices of a source in the place of those at indices along one dimension."""
    size = b.shape(x)[dim]
    if not isinstance(size, int):
        return b.reject("an index along the batch dimension mixes samples")
    winner, twice = counted(b, (size,), 0, positive(b, index, size))
    picked = b.emit("index_select", source, plain(b, "torch.clamp", winner, 0), dim=dim)
    column = (size, *(1,) * (len(b.shape(x)) - dim - 1))
    taken = b.emit("reshape", plain(b, "torch.ge", winner, 0), shape=column)
    unclear = b.emit("reshape", twice, shape=column)
    return settled(b, unclear, where(b, taken, picked, x))


def _marked(b: Lowering, x: Value, dim: int, index: Value) -> Value:
    """A mask of the slices at indices along one dimension."""
    size = b.shape(x)[dim]
    if not isinstance(size, int):
        return b.reject("an index along the batch dimension mixes samples")  # type: ignore[no-any-return]
    flags = blank(b, (size,), False, torch.bool)
    flat = positive(b, reshape_to(b, index, (-1,)), size)
    ones = blank(b, b.shape(flat), True, torch.bool)
    marks = plain(b, "torch.scatter", flags, 0, flat, ones)
    return b.emit("reshape", marks, shape=(size, *(1,) * (len(b.shape(x)) - dim - 1)))


@lowers(torch.index_add, "Tensor.index_add", aten.index_add.default)
def _(
    b: Lowering, input: Value, dim: int, index: Value, source: Value, *, alpha: float = 1
) -> Value:
    fixed(b, index)
    source = source if alpha == 1 else b.emit("mul_scalar", source, other=alpha)
    return add_at(b, input, b.dim(input, dim), reshape_to(b, index, (-1,)), source)


@lowers(torch.index_copy, "Tensor.index_copy", aten.index_copy.default)
def _(b: Lowering, input: Value, dim: int, index: Value, source: Value) -> Value:
    fixed(b, index)
    return copy_to(b, input, b.dim(input, dim), reshape_to(b, index, (-1,)), source)


@lowers(torch.index_fill, "Tensor.index_fill")
@lowers(aten.index_fill.int_Scalar, aten.index_fill.int_Tensor)
def _(b: Lowering, input: Value, dim: int, index: Value, value: Any) -> Value:
    fixed(b, index)
    return where(b, _marked(b, input, b.dim(input, dim), index), value, input)


def _put(b: Lowering, x: Value, indices: list[Any], values: Any, accumulate: bool) -> Value:
    """`x[indices] = values`, where each entry is an index tensor or None for a whole dimension."""
    for entry in indices:
        fixed(b, entry)
    at = [dim for dim, entry in enumerate(indices) if entry is not None]
    tensors = [b.tensor(indices[dim]) for dim in at]
    value = b.tensor(values, like=x)
    if len(tensors) == 1 and tensors[0].type.dtype == "bool":
        return _put_masked(b, x, at[0], tensors[0], value, accumulate)
    if any(entry.type.dtype in ("bool", "u8") for entry in tensors):
        return b.reject("masks among several indices have no bound rule", help="use torch.where")
    if at != list(range(at[0], at[-1] + 1)):
        return b.reject("index tensors on dimensions that are not side by side have no bound rule")
    first, shape = at[0], tuple(b.shape(x))
    sizes = shape[first : at[-1] + 1]
    if not all(isinstance(size, int) for size in sizes):
        return b.reject("an index along the batch dimension mixes samples")
    flat = positive(b, tensors[0], sizes[0])
    for entry, size in zip(tensors[1:], sizes[1:], strict=True):
        scaled = b.emit("mul_scalar", flat, other=size)
        flat = b.emit("add", *b.broadcast(scaled, positive(b, entry, size)))
    places = tuple(b.shape(flat))
    rest = shape[at[-1] + 1 :]
    value = expand_to(b, value, (*shape[:first], *places, *rest))
    source = reshape_to(b, value, (*shape[:first], numel(places), *rest))
    merged = reshape_to(b, x, (*shape[:first], numel(sizes), *rest))
    index = reshape_to(b, flat, (-1,))
    write = add_at if accumulate else copy_to
    return reshape_to(b, write(b, merged, first, index, source), shape)


def _put_masked(
    b: Lowering, x: Value, first: int, mask: Value, value: Value, accumulate: bool
) -> Value:
    if numel(b.shape(value)) != 1 or accumulate:
        return b.reject(
            "writing several values at a mask has no bound rule", help="use torch.where"
        )
    rank, covered = len(b.shape(x)), len(b.shape(mask))
    mask = reshape_to(b, mask, (*b.shape(mask), *(1,) * (rank - first - covered)))
    return where(b, mask, reshape_to(b, value, ()), x)


@lowers(torch.index_put, "Tensor.index_put", aten.index_put.default)
def _(b: Lowering, input: Value, indices: Any, values: Any, accumulate: bool = False) -> Value:
    return _put(b, input, list(indices), values, accumulate)


@lowers(operator.setitem)
def _(b: Lowering, input: Value, index: Any, value: Any) -> Value:
    """What `x` is after `x[index] = value`, with index tensors, lists or masks in the index."""
    items = list(index) if isinstance(index, tuple) else [index]
    items = [b.tensor(torch.tensor(i)) if isinstance(i, list) else i for i in items]
    consumed = sum(
        len(b.shape(i)) if isinstance(i, Value) and i.type.dtype == "bool" else i is not Ellipsis
        for i in items
    )
    if any(item is Ellipsis for item in items):
        at = next(i for i, item in enumerate(items) if item is Ellipsis)
        items[at : at + 1] = [slice(None)] * (len(b.shape(input)) - consumed)
    indices: list[Any] = []
    for item in items:
        if isinstance(item, Value):
            indices.append(item)
        elif isinstance(item, slice) and item == slice(None):
            indices.append(None)
        elif isinstance(item, int) and not isinstance(item, bool):
            indices.append(b.tensor(torch.tensor(item)))
        else:
            return b.reject(
                "writing at index tensors together with slices has no bound rule",
                help="use torch.where, or torch.index_copy",
            )
    return _put(b, input, indices, value, accumulate=False)
