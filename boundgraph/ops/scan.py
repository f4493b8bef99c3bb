"""Running sums along a dimension."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from boundgraph.ir.program import Value
from boundgraph.ops._kinds import affine
from boundgraph.ops._samples import random_shape
from boundgraph.ops._spec import Lowering, OpCase, Rounding, lowers

aten = torch.ops.aten


def _batch(batch_dims: Any, *_: Any, dim: int, **__: Any) -> int | None:
    return None if batch_dims[0] == dim else batch_dims[0]


def _sample(rng: random.Random) -> OpCase:
    shape = random_shape(rng)
    return OpCase((shape,), {"dim": rng.randrange(len(shape))})


def _adjoint(coeff: Tensor, *, shapes: Any, target: Any, dim: int) -> Tensor:
    """Element i is in every sum from i on."""
    return coeff.flip(dim + 1).cumsum(dim + 1).flip(dim + 1)


affine(
    "cumsum",
    lambda x, *, dim: x.cumsum(dim),
    lifted=lambda g, *, dim: g.cumsum(dim + 1),
    adjoint=_adjoint,
    batch=_batch,
    rounding=Rounding(terms=lambda x, *, dim: int(x.shape[dim])),
    sample=_sample,
    summary="sum of the elements so far",
)


@lowers(torch.cumsum, "Tensor.cumsum", aten.cumsum.default)
def _(b: Lowering, input: Value, dim: int, *, dtype: Any = None) -> Value:
    if dtype is not None:
        return b.reject("cumsum with dtype= has no bound rule", help="convert before it")
    return b.emit("cumsum", input, dim=b.dim(input, dim)) if b.shape(input) else input


@lowers(torch.diff, "Tensor.diff", aten.diff.default)
def _(
    b: Lowering, input: Value, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None
) -> Value:
    if prepend is not None or append is not None:
        return b.reject("diff with prepend or append has no bound rule", help="use torch.cat")
    at = b.dim(input, dim)
    for _ in range(n):
        size = b.shape(input)[at]
        if not isinstance(size, int):
            return b.reject("diff along the batch dimension mixes samples")
        later = b.emit("slice", input, dim=at, start=1, stop=size, step=1)
        input = b.emit("sub", later, b.emit("slice", input, dim=at, start=0, stop=size - 1, step=1))
    return input
