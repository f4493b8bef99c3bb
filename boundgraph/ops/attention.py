"""Scaled dot-product attention, as the products and the softmax that it is made of."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from boundgraph.ir.program import Value
from boundgraph.ops._compose import plain, use
from boundgraph.ops._dtypes import to_torch
from boundgraph.ops._spec import Lowering, lowers
from boundgraph.ops.matmul import matmul
from boundgraph.ops.selection import where

aten = torch.ops.aten


def _hidden(b: Lowering, mask: Value) -> tuple[Value, Value | None]:
    """Which scores a mask hides, and what it adds to the others, if anything."""
    if b.depends(mask):
        b.reject(
            "an attention mask that depends on the input has no bound rule",
            help="make the mask from sizes or constants",
        )
    if mask.type.dtype == "bool":
        return plain(b, "torch.logical_not", mask), None
    hidden = plain(b, "torch.isneginf", mask)
    nothing = b.tensor(torch.tensor(0.0, dtype=to_torch(mask.type.dtype)))
    return hidden, plain(b, "torch.where", hidden, nothing, mask)


def _later(b: Lowering, query: Value, key: Value) -> Value:
    rows, columns = b.shape(query)[-2], b.shape(key)[-2]
    if not (isinstance(rows, int) and isinstance(columns, int)):
        return b.reject("causal attention over a dynamic length has no bound rule")
    with torch.device("cpu"):
        return b.tensor(torch.ones(rows, columns, dtype=torch.bool).triu(1))


def _masked(
    b: Lowering, scores: Value, mask: Value | None, later: Value | None
) -> tuple[Value, Value | None]:
    """Scores, of which hidden ones are −∞, and which rows see nothing: their result is 0."""
    if later is not None:
        scores = where(b, later, -math.inf, scores)
    if mask is None:
        return scores, None
    hidden, extra = _hidden(b, mask)
    if extra is not None:
        scores = use(b, torch.add, scores, extra)
    nothing = plain(b, "torch.all", hidden, -1, True)
    some = plain(b, "torch.logical_and", hidden, plain(b, "torch.logical_not", nothing))
    return where(b, some, -math.inf, scores), nothing


@lowers(F.scaled_dot_product_attention, aten.scaled_dot_product_attention.default)
def _(
    b: Lowering,
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    if dropout_p:
        return b.reject("dropout in attention draws random numbers", help="call model.eval()")
    if enable_gqa:
        heads = b.shape(query)[-3]
        key, value = (
            use(b, torch.repeat_interleave, x, heads // b.shape(x)[-3], dim=-3)  # type: ignore[operator]
            for x in (key, value)
        )
    width = b.shape(query)[-1]
    assert isinstance(width, int)
    factor = 1.0 / math.sqrt(width) if scale is None else float(scale)
    rank = len(b.shape(key))
    turned = b.emit("permute", key, dims=(*range(rank - 2), rank - 1, rank - 2))
    # Query and key each take a part, so that their product stays small.
    part = math.sqrt(abs(factor))
    left = b.emit("mul_scalar", query, other=math.copysign(part, factor))
    scores = matmul(b, left, b.emit("mul_scalar", turned, other=part))
    later = _later(b, query, key) if is_causal else None
    scores, nothing = _masked(b, scores, attn_mask, later)
    result = matmul(b, b.emit("softmax", scores, dim=len(b.shape(scores)) - 1), value)
    return result if nothing is None else where(b, nothing, 0.0, result)
