"""Losses of a prediction and a target: what they are made of, and their reduction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from boundgraph.ir.program import Value
from boundgraph.ops._compose import plain, use
from boundgraph.ops._contraction import expand_to
from boundgraph.ops._spec import Lowering, lowers
from boundgraph.ops.selection import where

aten = torch.ops.aten
# How aten writes what Python writes as a word.
REDUCTIONS = {0: "none", 1: "mean", 2: "sum"}


def reduced(b: Lowering, x: Value, reduction: Any, total: Any = None) -> Value:
    """Mean (over `total`, or the number of elements) or sum of all elements."""
    how = REDUCTIONS.get(reduction, reduction)
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


def constant(b: Lowering, value: Any, what: str) -> None:
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
    return reduced(b, _weighted(b, square, weight), reduction or "mean")


def _l1(
    b: Lowering, input: Value, target: Value, *, reduction: Any = "mean", weight: Any = None
) -> Value:
    size = use(b, torch.abs, _gap(b, input, target))
    return reduced(b, _weighted(b, size, weight), reduction or "mean")


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
    return reduced(b, _weighted(b, loss, weight), reduction or "mean")


def _smooth_l1(
    b: Lowering, input: Value, target: Value, *, reduction: Any = "mean", beta: float = 1.0
) -> Value:
    if not beta:
        return _l1(b, input, target, reduction=reduction)
    loss = _huber_of(b, _gap(b, input, target), float(beta))
    return reduced(b, b.emit("mul_scalar", loss, other=1.0 / beta), reduction or "mean")


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
    constant(b, target, "target")
    hit = use(b, F.softplus, use(b, torch.neg, input))
    hit = use(b, torch.mul, hit, target)
    hit = _weighted(b, hit, pos_weight)
    miss = use(b, torch.mul, use(b, F.softplus, input), _less_than_one(b, target))
    loss = use(b, torch.add, hit, miss)
    return reduced(b, _weighted(b, loss, weight), reduction)


def _entropy(
    b: Lowering, input: Value, target: Value, weight: Any = None, reduction: Any = "mean"
) -> Value:
    """−t·log p − (1 − t)·log(1 − p), with logarithms of at least −100, as torch has it."""
    constant(b, target, "target")

    def cost(chance: Value, share: Value) -> Value:
        log = use(b, torch.clamp, use(b, torch.log, chance), min=-100.0)
        return use(b, torch.mul, use(b, torch.neg, log), share)  # type: ignore[no-any-return]

    hit = cost(input, target)
    miss = cost(use(b, torch.rsub, input, 1.0), _less_than_one(b, target))
    return reduced(b, _weighted(b, use(b, torch.add, hit, miss), weight), reduction)


def _divergence(
    b: Lowering,
    input: Value,
    target: Value,
    reduction: Any = "mean",
    *,
    log_target: bool = False,
) -> Value:
    """p·(log p − q) for a fixed p and a bounded log-probability q."""
    constant(b, target, "target")
    if log_target:
        share = plain(b, "torch.exp", target)
        own = plain(b, "torch.mul", share, target)
    else:
        share, own = target, plain(b, "torch.special.xlogy", target, target)
    loss = use(b, torch.sub, own, use(b, torch.mul, input, share))
    if reduction == "batchmean":
        total = reduced(b, loss, "sum")
        count = b.shape(input)[0]
        if not isinstance(count, int):
            return b.reject("a mean over a dynamic batch has no bound rule")
        return b.emit("div_scalar", total, other=count)
    return reduced(b, loss, reduction)


def _soft_margin(b: Lowering, input: Value, target: Value, *, reduction: Any = "mean") -> Value:
    constant(b, target, "target")
    turned = use(b, torch.mul, input, use(b, torch.neg, target))
    return reduced(b, use(b, F.softplus, turned), reduction or "mean")


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
    constant(b, target, "target")
    away = use(b, F.relu, use(b, torch.rsub, input, margin))
    wide = expand_to(b, target, b.shape(input))
    loss = where(b, plain(b, "torch.eq", wide, 1), input, away)
    return reduced(b, loss, reduction)
