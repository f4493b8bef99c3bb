"""Scaled dot-product attention, as the products and the softmax that it is made of."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from boundgraph.ir.program import Value
from boundgraph.ops._dtypes import to_torch
from boundgraph.ops._spec import Lowering, lowers
from boundgraph.ops.matmul import matmul

aten = torch.ops.aten


# Instead of −∞, whose product with a zero coefficient would be NaN: exp(−1e9) is 0, too.
_NEVER = -1e9


def _additive(b: Lowering, mask: Value, like: Value) -> Value:
    """A mask as numbers to add, far below 0 where it hides."""
    if b.depends(mask):
        return b.reject(
            "an attention mask that depends on the input has no bound rule",
            help="make the mask from sizes or constants",
        )
    if mask.type.dtype != "bool":
        return b.emit("call", mask, target="torch.clamp", args=("#0", _NEVER), kwargs=(), output=())
    dtype = to_torch(like.type.dtype)
    ends = [b.tensor(torch.tensor(end, dtype=dtype)) for end in (0.0, _NEVER)]
    return b.emit(
        "call", mask, *ends, target="torch.where", args=("#0", "#1", "#2"), kwargs=(), output=()
    )


def _causal(b: Lowering, query: Value, key: Value) -> Value:
    rows, columns = b.shape(query)[-2], b.shape(key)[-2]
    if not (isinstance(rows, int) and isinstance(columns, int)):
        return b.reject("causal attention over a dynamic length has no bound rule")
    with torch.device("cpu"):
        mask = torch.full((rows, columns), _NEVER, dtype=to_torch(query.type.dtype)).triu(1)
    return b.tensor(mask)


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
        return b.reject("enable_gqa has no bound rule", help="repeat the heads of key and value")
    width = b.shape(query)[-1]
    assert isinstance(width, int)
    factor = 1.0 / math.sqrt(width) if scale is None else float(scale)
    rank = len(b.shape(key))
    turned = b.emit("permute", key, dims=(*range(rank - 2), rank - 1, rank - 2))
    # Query and key each take a part, so that their product stays small.
    part = math.sqrt(abs(factor))
    left = b.emit("mul_scalar", query, other=math.copysign(part, factor))
    scores = matmul(b, left, b.emit("mul_scalar", turned, other=part))
    mask = _causal(b, query, key) if is_causal else attn_mask
    if mask is not None:
        extra = mask if is_causal else _additive(b, mask, query)
        scores = b.emit("add", *b.broadcast(scores, extra))
    weights = b.emit("softmax", scores, dim=len(b.shape(scores)) - 1)
    return matmul(b, weights, value)
