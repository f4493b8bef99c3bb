"""Ops that pick elements by a tensor of fixed indices: index_select, gather."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from boundgraph.ir.program import Value
from boundgraph.ir.types import numel
from boundgraph.ops._kinds import structural
from boundgraph.ops._samples import random_shape
from boundgraph.ops._spec import Lowering, OpCase, lowers
from boundgraph.ops.views import reshape_to

aten = torch.ops.aten


def _select_batch(batch_dims: Any, *_: Any, dim: int, **__: Any) -> int | None:
    return None if batch_dims[0] in (None, dim) else batch_dims[0]


def _sample_select(rng: random.Random) -> OpCase:
    shape = random_shape(rng)
    dim = rng.randrange(len(shape))
    return OpCase((shape, (rng.randint(1, 5),)), {"dim": dim}, indices=((1, shape[dim]),))


structural(
    "index_select",
    lambda x, index, *, dim: x.index_select(dim, index),
    lifted=lambda g, index, *, dim: g.index_select(dim + 1, index),
    adjoint=lambda coeff, index, *, shapes, target, dim: coeff.new_zeros(
        (coeff.shape[0], *shapes[0])
    ).index_add(dim + 1, index, coeff),
    batch=_select_batch,
    sample=_sample_select,
    summary="fixed indices along one dimension",
)


def _gather_batch(batch_dims: Any, shapes: Any, out: Any, *, dim: int, **_: Any) -> int | None:
    batch = batch_dims[0]
    return None if batch in (None, dim) or out[batch] != shapes[0][batch] else batch


def _sample_gather(rng: random.Random) -> OpCase:
    shape = random_shape(rng)
    dim = rng.randrange(len(shape))
    # Only the chosen dimension may grow; the first keeps its size, as a batch does.
    index = tuple(
        rng.randint(1, 5) if i == dim else rng.randint(1, size) if i else size
        for i, size in enumerate(shape)
    )
    return OpCase((shape, index), {"dim": dim, "rank": len(shape)}, indices=((1, shape[dim]),))


def _for_each(index: Tensor, rows: Any, rank: int) -> Tensor:
    """The same indices for each row or symbol."""
    return index.unsqueeze(0).expand((rows, *(-1,) * rank))


def _gather_adjoint(
    coeff: Tensor, index: Tensor, *, shapes: Any, target: Any, dim: int, rank: int
) -> Tensor:
    rows = coeff.shape[0]
    spread = coeff.expand((-1, *shapes[1]))
    blank = coeff.new_zeros((rows, *shapes[0]))
    return blank.scatter_add(dim + 1, _for_each(index, rows, rank), spread)


structural(
    "gather",
    lambda x, index, *, dim, rank: x.gather(dim, index),
    lifted=lambda g, index, *, dim, rank: g.gather(dim + 1, _for_each(index, g.shape[0], rank)),
    adjoint=_gather_adjoint,
    batch=_gather_batch,
    sample=_sample_gather,
    summary="fixed indices along one dimension, others for each position",
)


def _gather(b: Lowering, x: Value, dim: int, index: Value) -> Value:
    return b.emit("gather", x, index, dim=b.dim(x, dim), rank=len(b.shape(x)))


@lowers(torch.index_select, "Tensor.index_select", aten.index_select.default)
def _(b: Lowering, input: Value, dim: int, index: Value) -> Value:
    at = b.dim(input, dim)
    return b.emit("index_select", input, reshape_to(b, index, (-1,)), dim=at)


@lowers(torch.gather, "Tensor.gather", aten.gather.default)
def _(b: Lowering, input: Value, dim: int, index: Value, sparse_grad: bool = False) -> Value:
    return _gather(b, input, dim, index)


@lowers(torch.take_along_dim, "Tensor.take_along_dim", aten.take_along_dim.default)
def _(b: Lowering, input: Value, indices: Value, dim: int | None = None) -> Value:
    if dim is None:
        flat = reshape_to(b, input, (-1,))
        return _gather(b, flat, 0, reshape_to(b, indices, (-1,)))
    shapes = b.shape(input), b.shape(indices)
    at = b.dim(input, dim)
    # Both broadcast along all other dimensions.
    common = [left if right == 1 else right for left, right in zip(*shapes, strict=True)]
    wide = (*common[:at], shapes[0][at], *common[at + 1 :])
    input = b.emit("expand", input, shape=wide) if wide != shapes[0] else input
    places = (*common[:at], shapes[1][at], *common[at + 1 :])
    indices = b.emit("expand", indices, shape=places) if places != shapes[1] else indices
    return _gather(b, input, at, indices)


def positive(b: Lowering, index: Value, size: Any) -> Value:
    """Indices counted from the start; those below 0 count from the end."""
    return b.emit("call", index, target="torch.remainder", args=("#0", size), kwargs=(), output=())


def select_at(b: Lowering, x: Value, dim: int, index: Value) -> Value:
    """`x[..., index, ...]` with an index tensor of any shape at one dimension."""
    size, shape = b.shape(x)[dim], tuple(b.shape(x))
    if not isinstance(size, int):
        return b.reject("indexing the batch dimension mixes or drops samples")
    places = tuple(b.shape(index))
    flat = reshape_to(b, index, (-1,)) if len(places) != 1 else index
    picked = b.emit("index_select", x, positive(b, flat, size), dim=dim)
    return reshape_to(b, picked, (*shape[:dim], *places, *shape[dim + 1 :]))


def index_tensors(b: Lowering, x: Value, indices: list[Any]) -> Value:
    """`x[indices]` where each entry is an index tensor, or None for a whole dimension."""
    at = [dim for dim, entry in enumerate(indices) if entry is not None]
    tensors = [indices[dim] for dim in at]
    if any(entry.type.dtype in ("bool", "u8") for entry in tensors):
        return b.reject(
            "indexing with a mask gives a size that depends on values",
            help="use fixed integer indices, or torch.where",
        )
    if len(at) == 1:
        return select_at(b, x, at[0], tensors[0])
    sizes = [b.shape(x)[dim] for dim in at]
    if not all(isinstance(size, int) for size in sizes):
        return b.reject(
            "indexing the batch dimension together with others mixes or drops samples",
            help="use torch.gather with indices of the batch's shape",
        )
    # The indexed dimensions side by side, merged into one, picked by one flat index.
    rank, apart = len(b.shape(x)), at != list(range(at[0], at[-1] + 1))
    first = 0 if apart else at[0]
    others = [dim for dim in range(rank) if dim not in at]
    order = (*others[:first], *at, *others[first:])
    moved = b.emit("permute", x, dims=order) if order != tuple(range(rank)) else x
    shape = tuple(b.shape(moved))
    merged = reshape_to(b, moved, (*shape[:first], numel(tuple(sizes)), *shape[first + len(at) :]))
    flat = positive(b, tensors[0], sizes[0])
    for entry, size in zip(tensors[1:], sizes[1:], strict=True):
        scaled = b.emit("mul_scalar", flat, other=size)
        flat = b.emit("add", *b.broadcast(scaled, positive(b, entry, size)))
    if apart and any(not isinstance(entry, int) for entry in b.shape(merged)[: first + 1]):
        return b.reject("index tensors on dimensions that are not side by side have no bound rule")
    return select_at(b, merged, first, flat)


@lowers(aten.index.Tensor)
def _(b: Lowering, input: Value, indices: Any) -> Value:
    return index_tensors(b, input, list(indices))
