"""Losses as ops: what they are made of, element by element, and their reduction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from boundgraph.ir.program import Value
from boundgraph.ir.types import numel
from boundgraph.ops._compose import blank, plain, use
from boundgraph.ops._contraction import expand_to
from boundgraph.ops._dtypes import to_torch
from boundgraph.ops._spec import Lowering, lowers
from boundgraph.ops.selection import where
from boundgraph.ops.views import reshape_to

aten = torch.ops.aten
# How aten writes what Python writes as a word.
_REDUCTIONS = {0: "none", 1: "mean", 2: "sum"}


def _reduced(b: Lowering, x: Value, reduction: Any, total: Any = None) -> Value:
    """Mean (over `total`, or the number of elements) or sum of all elements."""
    how = _REDUCTIONS.get(reduction, reduction)
    if how == "none":
        return x
    dims = tuple(range(len(b.shape(x))))
    if how == "mean" and total is None:
        return b.emit("mean", x, dims=dims, keepdim=False) if dims else x
    whole = b.emit("sum", x, dims=dims, keepdim=False) if dims else x
    if how == "sum":
        return whole
    if how != "mean":
        b.reject(f"reduction={reduction!r} has no bound rule")
    return use(b, torch.div, whole, total)  # type: ignore[no-any-return]


def _constant(b: Lowering, value: Any, what: str) -> None:
    if b.depends(value):
        b.reject(f"a {what} that depends on the input has no bound rule")


def _pointwise(loss: Callable[..., Value]) -> Callable[..., Value]:
    """A loss of a prediction and a target, element by element, then reduced."""

    def lower(
        b: Lowering,
        input: Value,
        target: Value,
        *args: Any,
        size_average: Any = None,
        reduce: Any = None,
        reduction: Any = None,
        **kwargs: Any,
    ) -> Value:
        if size_average is not None or reduce is not None:
            return b.reject("size_average and reduce are deprecated", help="use reduction=")
        return loss(b, input, target, *args, reduction=reduction, **kwargs)

    return lower


def _gap(b: Lowering, input: Value, target: Value) -> Value:
    return use(b, torch.sub, input, target)  # type: ignore[no-any-return]


def _weighted(b: Lowering, x: Value, weight: Value | None) -> Value:
    return x if weight is None else use(b, torch.mul, x, weight)


def _mse(
    b: Lowering, input: Value, target: Value, *, reduction: Any = "mean", weight: Any = None
) -> Value:
    square = b.emit("square", _gap(b, input, target))
    return _reduced(b, _weighted(b, square, weight), reduction or "mean")


def _l1(
    b: Lowering, input: Value, target: Value, *, reduction: Any = "mean", weight: Any = None
) -> Value:
    size = use(b, torch.abs, _gap(b, input, target))
    return _reduced(b, _weighted(b, size, weight), reduction or "mean")


def _huber_of(b: Lowering, gap: Value, delta: float) -> Value:
    """m²/2 + δ·(a − m), with a = |gap| and m = min(a, δ): both rise with a."""
    size = use(b, torch.abs, gap)
    near = use(b, torch.clamp, size, max=delta)
    far = use(b, F.relu, b.emit("add_scalar", size, other=-delta))
    half = b.emit("mul_scalar", b.emit("square", near), other=0.5)
    return b.emit("add", half, b.emit("mul_scalar", far, other=delta))


def _huber(
    b: Lowering,
    input: Value,
    target: Value,
    *,
    reduction: Any = "mean",
    delta: float = 1.0,
    weight: Any = None,
) -> Value:
    loss = _huber_of(b, _gap(b, input, target), float(delta))
    return _reduced(b, _weighted(b, loss, weight), reduction or "mean")


def _smooth_l1(
    b: Lowering, input: Value, target: Value, *, reduction: Any = "mean", beta: float = 1.0
) -> Value:
    if not beta:
        return _l1(b, input, target, reduction=reduction)
    loss = _huber_of(b, _gap(b, input, target), float(beta))
    return _reduced(b, b.emit("mul_scalar", loss, other=1.0 / beta), reduction or "mean")


def _less_than_one(b: Lowering, target: Value) -> Value:
    """1 − target."""
    return use(b, torch.rsub, target, 1.0)  # type: ignore[no-any-return]


def _with_logits(
    b: Lowering,
    input: Value,
    target: Value,
    weight: Any = None,
    pos_weight: Any = None,
    reduction: Any = "mean",
) -> Value:
    """t·softplus(−x) + (1 − t)·softplus(x); for a t of 0 or 1 each bound is exact."""
    _constant(b, target, "target")
    hit = use(b, F.softplus, use(b, torch.neg, input))
    hit = use(b, torch.mul, hit, target)
    hit = _weighted(b, hit, pos_weight)
    miss = use(b, torch.mul, use(b, F.softplus, input), _less_than_one(b, target))
    loss = use(b, torch.add, hit, miss)
    return _reduced(b, _weighted(b, loss, weight), reduction)


def _entropy(
    b: Lowering, input: Value, target: Value, weight: Any = None, reduction: Any = "mean"
) -> Value:
    """−t·log p − (1 − t)·log(1 − p), with logarithms of at least −100, as torch has it."""
    _constant(b, target, "target")

    def cost(chance: Value, share: Value) -> Value:
        log = use(b, torch.clamp, use(b, torch.log, chance), min=-100.0)
        return use(b, torch.mul, use(b, torch.neg, log), share)  # type: ignore[no-any-return]

    hit = cost(input, target)
    miss = cost(use(b, torch.rsub, input, 1.0), _less_than_one(b, target))
    return _reduced(b, _weighted(b, use(b, torch.add, hit, miss), weight), reduction)


def _divergence(
    b: Lowering,
    input: Value,
    target: Value,
    reduction: Any = "mean",
    *,
    log_target: bool = False,
) -> Value:
    """p·(log p − q) for a fixed p and a bounded log-probability q."""
    _constant(b, target, "target")
    if log_target:
        share = plain(b, "torch.exp", target)
        own = plain(b, "torch.mul", share, target)
    else:
        share, own = target, plain(b, "torch.special.xlogy", target, target)
    loss = use(b, torch.sub, own, use(b, torch.mul, input, share))
    if reduction == "batchmean":
        total = _reduced(b, loss, "sum")
        count = b.shape(input)[0]
        if not isinstance(count, int):
            return b.reject("a mean over a dynamic batch has no bound rule")
        return b.emit("div_scalar", total, other=count)
    return _reduced(b, loss, reduction)


def _soft_margin(b: Lowering, input: Value, target: Value, *, reduction: Any = "mean") -> Value:
    _constant(b, target, "target")
    turned = use(b, torch.mul, input, use(b, torch.neg, target))
    return _reduced(b, use(b, F.softplus, turned), reduction or "mean")


lowers(F.mse_loss)(_pointwise(_mse))
lowers(F.l1_loss)(_pointwise(_l1))
lowers(F.soft_margin_loss)(_pointwise(_soft_margin))


@lowers(F.huber_loss)
def _(
    b: Lowering,
    input: Value,
    target: Value,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Any = None,
) -> Value:
    return _huber(b, input, target, reduction=reduction, delta=delta, weight=weight)


@lowers(F.smooth_l1_loss)
def _(
    b: Lowering,
    input: Value,
    target: Value,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Value:
    return _smooth_l1(b, input, target, reduction=reduction, beta=beta)


@lowers(F.binary_cross_entropy_with_logits)
def _(
    b: Lowering,
    input: Value,
    target: Value,
    weight: Any = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    pos_weight: Any = None,
) -> Value:
    return _with_logits(b, input, target, weight, pos_weight, reduction)


@lowers(F.binary_cross_entropy)
def _(
    b: Lowering,
    input: Value,
    target: Value,
    weight: Any = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
) -> Value:
    return _entropy(b, input, target, weight, reduction)


@lowers(F.kl_div)
def _(
    b: Lowering,
    input: Value,
    target: Value,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Value:
    return _divergence(b, input, target, reduction, log_target=log_target)


def _by_position(loss: Any, *names: str) -> Any:
    """An overload of aten, whose options stand behind the target without names."""

    def lower(b: Lowering, input: Value, target: Value, *options: Any) -> Value:
        given = dict(zip(names, options, strict=False))
        return loss(b, input, target, **{"reduction": 1} | given)  # type: ignore[no-any-return]

    return lower


lowers(aten.mse_loss.default)(_by_position(_mse, "reduction"))
lowers(aten.l1_loss.default)(_by_position(_l1, "reduction"))
lowers(aten.soft_margin_loss.default)(_by_position(_soft_margin, "reduction"))
lowers(aten.huber_loss.default)(_by_position(_huber, "reduction", "delta"))
lowers(aten.smooth_l1_loss.default)(_by_position(_smooth_l1, "reduction", "beta"))
lowers(aten.binary_cross_entropy.default)(_by_position(_entropy, "weight", "reduction"))
lowers(aten.binary_cross_entropy_with_logits.default)(
    _by_position(_with_logits, "weight", "pos_weight", "reduction")
)


@lowers(aten.kl_div.default)
def _(
    b: Lowering, input: Value, target: Value, reduction: int = 1, *, log_target: bool = False
) -> Value:
    return _divergence(b, input, target, reduction, log_target=log_target)


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
    _constant(b, target, "target")
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
        return _reduced(b, loss, reduction, total)
    spread = log_chances
    if weight is not None:
        along = (len(shape) - dim - 1) * (1,)
        spread = use(b, torch.mul, spread, reshape_to(b, weight, (*b.shape(weight), *along)))
    even = use(b, torch.neg, b.emit("sum", spread, dims=(dim,), keepdim=False))
    even = use(b, torch.mul, even, plain(b, "Tensor.to", kept, dtype))
    even = b.emit("mul_scalar", even, other=smoothing / shape[dim])  # type: ignore[operator]
    mixed = use(b, torch.add, b.emit("mul_scalar", loss, other=1.0 - smoothing), even)
    return _reduced(b, mixed, reduction, total)


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
    if _REDUCTIONS.get(reduction, reduction) != "mean":
        return _reduced(b, loss, reduction)
    samples = numel(tuple(size for at, size in enumerate(shape) if at != dim))
    if not isinstance(samples, int):
        return _reduced(b, loss, "mean")
    return b.emit("div_scalar", _reduced(b, loss, "sum"), other=samples)


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


@lowers(F.hinge_embedding_loss)
def _(
    b: Lowering,
    input: Value,
    target: Value,
    margin: float = 1.0,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
) -> Value:
    """x at a target of 1, max(0, margin − x) at −1."""
    _constant(b, target, "target")
    away = use(b, F.relu, use(b, torch.rsub, input, margin))
    wide = expand_to(b, target, b.shape(input))
    loss = where(b, plain(b, "torch.eq", wide, 1), input, away)
    return _reduced(b, loss, reduction)
