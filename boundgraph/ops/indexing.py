"""Ops that pick elements by position: slice, select."""

from __future__ import annotations

import operator
import random
from typing import Any

import torch
from torch import Tensor

from boundgraph.ir.program import Value
from boundgraph.ops._kinds import structural
from boundgraph.ops._samples import random_shape
from boundgraph.ops._spec import (
    Lowering,
    OpCase,
    lowers,
)
from boundgraph.ops.gather import index_tensors
from boundgraph.ops.views import reshape_to

aten = torch.ops.aten


def _blank(coeff: Tensor, shape: Any) -> Tensor:
    """Zero coefficients of an operand of that shape, for as many rows as `coeff`."""
    return coeff.new_zeros((coeff.shape[0], *shape))


def _slice(x: Tensor, *, dim: int, start: int, stop: int, step: int) -> Tensor:
    index = (slice(None),) * dim + (slice(start, stop, step),)
    return x[index]


def _slice_batch(batch_dims: Any, *_: Any, dim: int, **__: Any) -> int | None:
    return None if batch_dims[0] in (None, dim) else batch_dims[0]


def _sample_slice(rng: random.Random) -> OpCase:
    shape = tuple(rng.randint(2, 5) for _ in range(rng.randint(1, 3)))
    dim = rng.randrange(len(shape))
    start = rng.randrange(shape[dim])
    stop = rng.randint(start + 1, shape[dim])
    return OpCase((shape,), {"dim": dim, "start": start, "stop": stop, "step": rng.randint(1, 2)})


structural(
    "slice",
    _slice,
    lifted=lambda g, *, dim, **attrs: _slice(g, dim=dim + 1, **attrs),
    adjoint=lambda coeff, *, shapes, target, dim, start, stop, step: torch.slice_scatter(
        _blank(coeff, shapes[0]), coeff, dim + 1, start, stop, step
    ),
    batch=_slice_batch,
    sample=_sample_slice,
    summary="start:stop:step along one dimension",
)


def _select_batch(batch_dims: Any, *_: Any, dim: int, **__: Any) -> int | None:
    batch = batch_dims[0]
    if batch in (None, dim):
        return None
    return batch if batch < dim else batch - 1


structural(
    "select",
    lambda x, *, dim, index: x.select(dim, index),
    lifted=lambda g, *, dim, index: g.select(dim + 1, index),
    adjoint=lambda coeff, *, shapes, target, dim, index: torch.select_scatter(
        _blank(coeff, shapes[0]), coeff, dim + 1, index
    ),
    batch=_select_batch,
    sample=lambda rng: OpCase((random_shape(rng, 1),), {"dim": 0, "index": 0}),
    summary="one index along one dimension, which goes",
)


def take_slice(b: Lowering, x: Value, dim: int, start: Any, stop: Any, step: Any) -> Value:
    size = b.shape(x)[dim]
    step = 1 if step is None else step
    full = start in (None, 0) and (stop is None or stop == size or _beyond(stop, size))
    if full and step == 1:
        return x
    if not isinstance(size, int):
        return b.reject(f"a slice of the dynamic dimension {dim} mixes or drops samples")
    first, last, step = slice(start, stop, step).indices(size)
    return b.emit("slice", x, dim=dim, start=first, stop=last, step=step)


def _beyond(stop: Any, size: Any) -> bool:
    """The 'to the end' sentinel of exported graphs, or a stop past a static size."""
    return isinstance(stop, int) and (stop >= 2**62 or (isinstance(size, int) and stop >= size))


@lowers(aten.slice.Tensor)
def _(
    b: Lowering, input: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    return take_slice(b, input, b.dim(input, dim), start, end, step)


@lowers(torch.narrow, "Tensor.narrow", aten.narrow.default)
def _(b: Lowering, input: Value, dim: int, start: int, length: int) -> Value:
    return take_slice(b, input, b.dim(input, dim), start, start + length, 1)


@lowers(torch.select, "Tensor.select", aten.select.int)
def _(b: Lowering, input: Value, dim: int, index: int) -> Value:
    at = b.dim(input, dim)
    size = b.shape(input)[at]
    if isinstance(size, int):
        index %= size
    return b.emit("select", input, dim=at, index=index)


def index_value(b: Lowering, x: Value, index: Any) -> Value:
    """`x[index]` for ints, slices, None, Ellipsis and tensors of fixed indices."""
    items = list(index) if isinstance(index, tuple) else [index]
    items = [b.tensor(torch.tensor(item)) if _is_list(item) else item for item in items]
    consumed = sum(item is not None and item is not Ellipsis for item in items)
    if any(item is Ellipsis for item in items):
        at = next(i for i, item in enumerate(items) if item is Ellipsis)
        items[at : at + 1] = [slice(None)] * (len(b.shape(x)) - consumed)
    tensors: list[Any] = []
    for item in items:
        dim = len(tensors)
        if item is None:
            x = reshape_to(b, x, (*b.shape(x)[:dim], 1, *b.shape(x)[dim:]))
            tensors.append(None)
        elif isinstance(item, slice):
            x = take_slice(b, x, dim, item.start, item.stop, item.step)
            tensors.append(None)
        elif isinstance(item, int) and not isinstance(item, bool):
            if any(isinstance(other, Value) for other in items):
                # Beside an index tensor a number is one too, and broadcasts with it.
                tensors.append(b.tensor(torch.tensor(item)))
                continue
            size = b.shape(x)[dim]
            where = item % size if isinstance(size, int) else item
            x = b.emit("select", x, dim=dim, index=where)
        elif isinstance(item, Value):
            tensors.append(item)
        else:
            return b.reject(f"indexing with {type(item).__name__} has no bound rule")
    return index_tensors(b, x, tensors) if any(t is not None for t in tensors) else x


def _is_list(item: Any) -> bool:
    return isinstance(item, list | tuple) and all(isinstance(entry, int) for entry in item)


@lowers(operator.getitem)
def _(b: Lowering, input: Value, index: Any) -> Value:
    return index_value(b, input, index)


def _pieces(b: Lowering, x: Value, sizes: list[Any], dim: int) -> tuple[Value, ...]:
    pieces, start = [], 0
    for length in sizes:
        pieces.append(take_slice(b, x, dim, start, start + length, 1))
        start += length
    return tuple(pieces)


@lowers(torch.chunk, "Tensor.chunk", aten.chunk.default)
def _(b: Lowering, input: Value, chunks: int, dim: int = 0) -> Any:
    at = b.dim(input, dim)
    size = b.shape(input)[at]
    if not isinstance(size, int):
        return (b.reject(f"chunk along the dynamic dimension {at} mixes samples"),) * chunks
    length = -(-size // chunks)
    return _pieces(b, input, [min(length, size - i) for i in range(0, size, length)], at)


@lowers(torch.split, "Tensor.split", aten.split.Tensor, aten.split_with_sizes.default)
@lowers(aten.split.sizes)
def _(b: Lowering, input: Value, split_size_or_sections: Any, dim: int = 0) -> Any:
    at = b.dim(input, dim)
    size = b.shape(input)[at]
    if not isinstance(size, int):
        return (b.reject(f"split along the dynamic dimension {at} mixes samples"),)
    if isinstance(split_size_or_sections, int):
        length = split_size_or_sections
        return _pieces(b, input, [min(length, size - i) for i in range(0, size, length)], at)
    return _pieces(b, input, list(split_size_or_sections), at)


@lowers(torch.tensor_split, "Tensor.tensor_split", aten.tensor_split.sections)
@lowers(aten.tensor_split.indices)
def _(b: Lowering, input: Value, indices_or_sections: Any, dim: int = 0) -> Any:
    at = b.dim(input, dim)
    size = b.shape(input)[at]
    if not isinstance(size, int):
        return (b.reject(f"tensor_split along the dynamic dimension {at} mixes samples"),)
    if isinstance(indices_or_sections, int):
        each, more = divmod(size, indices_or_sections)
        lengths = [each + (i < more) for i in range(indices_or_sections)]
        return _pieces(b, input, lengths, at)
    cuts = [min(max(cut % size if cut < 0 else cut, 0), size) for cut in indices_or_sections]
    starts, stops = [0, *cuts], [*cuts, size]
    return tuple(
        b.emit("slice", input, dim=at, start=start, stop=max(start, stop), step=1)
        for start, stop in zip(starts, stops, strict=True)
    )


@lowers(torch.unbind, "Tensor.unbind", aten.unbind.int)
def _(b: Lowering, input: Value, dim: int = 0) -> Any:
    at = b.dim(input, dim)
    size = b.shape(input)[at]
    if not isinstance(size, int):
        return (b.reject(f"unbind along the dynamic dimension {at} mixes samples"),)
    return tuple(b.emit("select", input, dim=at, index=i) for i in range(size))
