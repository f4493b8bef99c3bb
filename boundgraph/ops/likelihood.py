"""Losses of a classifier as ops: cross_entropy and nll_loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from boundgraph.ir.program import Value
from boundgraph.ir.types import numel
from boundgraph.ops._compose import blank, plain, use
from boundgraph.ops._dtypes import to_torch
from boundgraph.ops._spec import Lowering, lowers
from boundgraph.ops.losses import REDUCTIONS, constant, reduced
from boundgraph.ops.views import reshape_to

aten = torch.ops.aten


def _classes(b: Lowering, x: Value) -> int:
    """The dimension of the classes: 1, or 0 where there is no batch."""
    return min(1, len(b.shape(x)) - 1)


def _picked(
    b: Lowering,
    log_chances: Value,
    target: Value,
    weight: Value | None,
    ignore_index: int,
    reduction: Any,
    smoothing: float = 0.0,
) -> Value:
    """Minus the log-probability at the target of each sample, by class weights."""
    constant(b, target, "target")
    dim, shape = _classes(b, log_chances), tuple(b.shape(log_chances))
    dtype = to_torch(log_chances.type.dtype)
    kept = plain(b, "torch.ne", target, ignore_index)
    label = plain(b, "torch.where", kept, target, blank(b, b.shape(target), 0, torch.int64))
    share = plain(b, "Tensor.to", kept, dtype)
    if weight is not None:
        of_label = plain(b, "torch.nn.functional.embedding", label, _column(b, weight))
        share = plain(b, "torch.mul", share, reshape_to(b, of_label, b.shape(label)))
    column = (*shape[:dim], 1, *shape[dim + 1 :])
    index = reshape_to(b, label, column)
    chance = b.emit("gather", log_chances, index, dim=dim, rank=len(shape))
    loss = use(b, torch.neg, reshape_to(b, chance, b.shape(label)))
    loss = use(b, torch.mul, loss, share)
    total = plain(b, "torch.sum", share)
    if not smoothing:
        return reduced(b, loss, reduction, total)
    spread = log_chances
    if weight is not None:
        along = (len(shape) - dim - 1) * (1,)
        spread = use(b, torch.mul, spread, reshape_to(b, weight, (*b.shape(weight), *along)))
    even = use(b, torch.neg, b.emit("sum", spread, dims=(dim,), keepdim=False))
    even = use(b, torch.mul, even, plain(b, "Tensor.to", kept, dtype))
    even = b.emit("mul_scalar", even, other=smoothing / shape[dim])  # type: ignore[operator]
    mixed = use(b, torch.add, b.emit("mul_scalar", loss, other=1.0 - smoothing), even)
    return reduced(b, mixed, reduction, total)


def _column(b: Lowering, weight: Value) -> Value:
    return b.emit("reshape", weight, shape=(*b.shape(weight), 1))


def _against_chances(
    b: Lowering,
    log_chances: Value,
    target: Value,
    weight: Value | None,
    reduction: Any,
    smoothing: float,
) -> Value:
    """Cross-entropy with a probability for each class."""
    dim, shape = _classes(b, log_chances), tuple(b.shape(log_chances))
    count = shape[dim]
    if smoothing:
        target = b.emit("mul_scalar", target, other=1.0 - smoothing)
        target = b.emit("add_scalar", target, other=smoothing / count)  # type: ignore[operator]
    if weight is not None:
        wide = reshape_to(b, weight, (*b.shape(weight), *(1,) * (len(shape) - dim - 1)))
        target = use(b, torch.mul, target, wide)
    each = use(b, torch.mul, log_chances, target)
    loss = use(b, torch.neg, b.emit("sum", each, dims=(dim,), keepdim=False))
    if REDUCTIONS.get(reduction, reduction) != "mean":
        return reduced(b, loss, reduction)
    samples = numel(tuple(size for at, size in enumerate(shape) if at != dim))
    if not isinstance(samples, int):
        return reduced(b, loss, "mean")
    return b.emit("div_scalar", reduced(b, loss, "sum"), other=samples)


def _cross_entropy(
    b: Lowering,
    input: Value,
    target: Value,
    weight: Any = None,
    reduction: Any = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Value:
    log_chances = b.emit("log_softmax", input, dim=_classes(b, input))
    if target.type.is_float:
        return _against_chances(b, log_chances, target, weight, reduction, float(label_smoothing))
    return _picked(b, log_chances, target, weight, ignore_index, reduction, float(label_smoothing))


lowers(aten.cross_entropy_loss.default)(_cross_entropy)


@lowers(F.cross_entropy)
def _(
    b: Lowering,
    input: Value,
    target: Value,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Value:
    return _cross_entropy(b, input, target, weight, reduction, ignore_index, label_smoothing)


@lowers(F.nll_loss)
def _(
    b: Lowering,
    input: Value,
    target: Value,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
) -> Value:
    return _picked(b, input, target, weight, ignore_index, reduction)


@lowers(aten.nll_loss_nd.default, aten.nll_loss.default, aten.nll_loss2d.default)
def _(
    b: Lowering,
    input: Value,
    target: Value,
    weight: Any = None,
    reduction: int = 1,
    ignore_index: int = -100,
) -> Value:
    return _picked(b, input, target, weight, ignore_index, reduction)
