"""Windows over a tensor (unfold, im2col), their sum back (fold), diagonals, triangles."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.ir.program import Value
from boundgraph.ops._dtypes import to_torch
from boundgraph.ops._kinds import affine
from boundgraph.ops._samples import random_shape
from boundgraph.ops._spec import Lowering, OpCase, Rounding, lowers
from boundgraph.ops.views import reshape_to

aten = torch.ops.aten


def _sum_at(x: Tensor, index: Tensor, *, dim: int, size: int) -> Tensor:
    # Zeros of the result's shape, which is not known while a program is emitted.
    first = torch.zeros_like(x.narrow(dim, 0, 1))
    return first.repeat_interleave(size, dim).index_add(dim, index, x)


def _batch(batch_dims: Any, *_: Any, dim: int, **__: Any) -> int | None:
    return None if batch_dims[0] in (None, dim) else batch_dims[0]


def _sample(rng: random.Random) -> OpCase:
    shape = random_shape(rng)
    dim, size = rng.randrange(len(shape)), rng.randint(1, 4)
    return OpCase((shape, (shape[dim],)), {"dim": dim, "size": size}, indices=((1, size),))


affine(
    "sum_at",
    _sum_at,
    lifted=lambda g, index, *, dim, size: _sum_at(g, index, dim=dim + 1, size=size),
    adjoint=lambda coeff, index, *, shapes, target, dim, size: coeff.index_select(dim + 1, index),
    batch=_batch,
    rounding=Rounding(terms=lambda x, index, *, dim, size: int(x.shape[dim]) + 1),
    sample=_sample,
    summary="sums of the elements that share an index along one dimension",
)


def _pair(value: Any) -> tuple[int, int]:
    first, *rest = value if isinstance(value, tuple | list) else (value,)
    return first, rest[0] if rest else first


def _patches(
    size: tuple[int, int], kernel: Any, dilation: Any, padding: Any, stride: Any
) -> tuple[Tensor, tuple[int, int, int, int]]:
    """Flat index of each element of each window in the padded image: `[kernel · windows]`."""
    (up, side), steps = _pair(padding), (_pair(kernel), _pair(dilation), 0, _pair(stride))
    height, width = size[0] + 2 * up, size[1] + 2 * side
    image = torch.arange(height * width, dtype=torch.float64).reshape(1, 1, height, width)
    return F.unfold(image, *steps)[0].long(), (side, side, up, up)


@lowers(F.unfold, aten.im2col.default)
def _(
    b: Lowering,
    input: Value,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
) -> Value:
    *lead, channels, height, width = b.shape(input)
    with torch.device("cpu"):
        index, pads = _patches((height, width), kernel_size, dilation, padding, stride)  # type: ignore[arg-type]
    x = input
    if any(pads):
        x = b.emit("pad", x, pads=pads, mode="constant", value=0.0)
    x = reshape_to(b, x, (*lead, channels, -1))
    x = b.emit("index_select", x, b.tensor(index.reshape(-1)), dim=len(lead) + 1)
    return reshape_to(b, x, (*lead, channels * index.shape[0], index.shape[1]))


@lowers(F.fold, aten.col2im.default)
def _(
    b: Lowering,
    input: Value,
    output_size: Any,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
) -> Value:
    (height, width), (up, side) = _pair(output_size), _pair(padding)
    with torch.device("cpu"):
        index, _ = _patches((height, width), kernel_size, dilation, padding, stride)
    *lead, rows, _ = b.shape(input)
    channels = rows // math.prod(_pair(kernel_size))  # type: ignore[operator]
    x = reshape_to(b, input, (*lead, channels, index.numel()))
    tall, wide = height + 2 * up, width + 2 * side
    at = len(lead) + 1
    x = b.emit("sum_at", x, b.tensor(index.reshape(-1)), dim=at, size=tall * wide)
    x = reshape_to(b, x, (*lead, channels, tall, wide))
    for dim, margin, size in ((at, up, height), (at + 1, side, width)):
        if margin:
            x = b.emit("slice", x, dim=dim, start=margin, stop=margin + size, step=1)
    return x


@lowers("Tensor.unfold", aten.unfold.default)
def _(b: Lowering, input: Value, dimension: int, size: int, step: int) -> Value:
    at, shape = b.dim(input, dimension), tuple(b.shape(input))
    length = shape[at]
    if not isinstance(length, int):
        return b.reject("windows along the batch dimension mix samples")
    with torch.device("cpu"):
        index = torch.arange(length).unfold(0, size, step)
    x = b.emit("index_select", input, b.tensor(index.reshape(-1)), dim=at)
    x = reshape_to(b, x, (*shape[:at], *index.shape, *shape[at + 1 :]))
    rank = len(shape) + 1
    order = (*range(at + 1), *range(at + 2, rank), at + 1)
    return b.emit("permute", x, dims=order) if at + 2 < rank else x


@lowers(torch.diagonal, "Tensor.diagonal", aten.diagonal.default)
def _(b: Lowering, input: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    first, second = b.dim(input, dim1), b.dim(input, dim2)
    rank, shape = len(b.shape(input)), b.shape(input)
    rows, columns = shape[first], shape[second]
    if not (isinstance(rows, int) and isinstance(columns, int)):
        return b.reject("a diagonal across the batch dimension mixes samples")
    with torch.device("cpu"):
        index = torch.arange(rows * columns).reshape(rows, columns).diagonal(offset)
    others = tuple(dim for dim in range(rank) if dim not in (first, second))
    x = b.emit("permute", input, dims=(*others, first, second))
    x = reshape_to(b, x, (*(shape[dim] for dim in others), rows * columns))
    return b.emit("index_select", x, b.tensor(index.contiguous()), dim=rank - 2)


def _triangle(keep: Any) -> Any:
    def lower(b: Lowering, input: Value, diagonal: int = 0) -> Value:
        if not b.depends(input):
            # Constants may be infinite, and are left to torch.
            return b.reject("constant")
        rows, columns = b.shape(input)[-2:]
        if not (isinstance(rows, int) and isinstance(columns, int)):
            return b.reject("a triangle across the batch dimension mixes samples")
        with torch.device("cpu"):
            mask = keep(torch.ones(rows, columns, dtype=to_torch(input.type.dtype)), diagonal)
        return b.emit("mul", *b.broadcast(input, mask))

    return lower


lowers(torch.triu, "Tensor.triu", aten.triu.default)(_triangle(torch.triu))
lowers(torch.tril, "Tensor.tril", aten.tril.default)(_triangle(torch.tril))
