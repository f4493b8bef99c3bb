"""Sums and means over dimensions."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch import Tensor

from boundgraph.ir.program import Value
from boundgraph.ops._kinds import affine
from boundgraph.ops._spec import Lowering, OpCase, Rounding, lowers

aten = torch.ops.aten


def _batch(batch_dims: Any, *_: Any, dims: tuple[int, ...], keepdim: bool, **__: Any) -> int | None:
    batch = batch_dims[0]
    if batch is None or batch in dims:
        return None
    return batch if keepdim else batch - sum(dim < batch for dim in dims)


def _sample(rng: random.Random) -> OpCase:
    shape = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 3)))
    count = rng.randint(1, len(shape))
    dims = tuple(sorted(rng.sample(range(len(shape)), count)))
    return OpCase((shape,), {"dims": dims, "keepdim": rng.random() < 0.5})


def _terms(x: Tensor, *, dims: tuple[int, ...], **_: Any) -> int:
    return math.prod(x.shape[dim] for dim in dims) + 1


def _adjoint(mean: bool) -> Any:
    def adjoint(
        coeff: Tensor, *, shapes: Any, target: Any, dims: tuple[int, ...], keepdim: bool
    ) -> Tensor:
        if not keepdim:
            for dim in dims:
                coeff = coeff.unsqueeze(dim + 1)
        spread = coeff.expand((-1, *shapes[0]))
        return spread / math.prod(shapes[0][dim] for dim in dims) if mean else spread

    return adjoint


def _define(name: str, fn: Any, summary: str) -> None:
    def concrete(x: Tensor, *, dims: tuple[int, ...], keepdim: bool) -> Tensor:
        return fn(x, dim=dims, keepdim=keepdim)

    # Over symbols the block is folded into dimension 0, which need not be the batch here,
    # so the reduced dimensions are shifted instead.
    def lifted(x: Tensor, *, dims: tuple[int, ...], keepdim: bool) -> Tensor:
        return fn(x, dim=tuple(dim + 1 for dim in dims), keepdim=keepdim)

    affine(
        name,
        concrete,
        lifted=lifted,
        adjoint=_adjoint(mean=name == "mean"),
        batch=_batch,
        rounding=Rounding(ulps=2, terms=_terms),
        sample=_sample,
        summary=summary,
    )


_define("sum", torch.sum, "sum over dimensions")
_define("mean", torch.mean, "mean over dimensions")


def _lower(op: str) -> Any:
    def lower(
        b: Lowering,
        input: Value,
        dim: Any = None,
        keepdim: bool = False,
        *,
        axis: Any = None,
        dtype: Any = None,
    ) -> Value:
        if dtype is not None:
            return b.reject(f"{op} with dtype= has no bound rule")
        dim = axis if dim is None else dim
        rank = len(b.shape(input))
        chosen = (
            range(rank)
            if dim in (None, (), [])
            else (dim if isinstance(dim, tuple | list) else (dim,))
        )
        dims = tuple(sorted(b.dim(input, d) for d in chosen))
        return b.emit(op, input, dims=dims, keepdim=keepdim) if rank else input

    return lower


lowers(torch.sum, "Tensor.sum", aten.sum.default, aten.sum.dim_IntList)(_lower("sum"))
lowers(torch.mean, "Tensor.mean", aten.mean.default, aten.mean.dim)(_lower("mean"))
