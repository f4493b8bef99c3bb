"""Functions of two or three tensors that are a few ops each."""

from __future__ import annotations

from string import ascii_letters
from typing import Any

import torch
import torch.nn.functional as F

from boundgraph.ir.program import Value
from boundgraph.ops._compose import use
from boundgraph.ops._contraction import contract
from boundgraph.ops._spec import Lowering, lowers
from boundgraph.ops.blend import blend
from boundgraph.ops.matmul import matmul
from boundgraph.ops.views import reshape_to

aten = torch.ops.aten


def _scaled(b: Lowering, x: Value, factor: float) -> Value:
    return x if factor == 1 else b.emit("mul_scalar", x, other=float(factor))


@lowers(torch.addcmul, "Tensor.addcmul", aten.addcmul.default)
def _(b: Lowering, input: Value, tensor1: Value, tensor2: Value, *, value: float = 1) -> Value:
    product = use(b, torch.mul, tensor1, tensor2)
    return use(b, torch.add, input, _scaled(b, product, value))  # type: ignore[no-any-return]


@lowers(torch.addcdiv, "Tensor.addcdiv", aten.addcdiv.default)
def _(b: Lowering, input: Value, tensor1: Value, tensor2: Value, *, value: float = 1) -> Value:
    quotient = use(b, torch.div, tensor1, tensor2)
    return use(b, torch.add, input, _scaled(b, quotient, value))  # type: ignore[no-any-return]


@lowers(torch.lerp, "Tensor.lerp", aten.lerp.Scalar, aten.lerp.Tensor)
def _(b: Lowering, input: Value, end: Value, weight: Any) -> Value:
    """(1 − w)·x + w·y where w is fixed, so that each operand is read once."""
    if b.depends(weight):
        return blend(b, input, end, weight)
    rest = use(b, torch.rsub, weight, 1.0) if isinstance(weight, Value) else 1.0 - weight
    return use(  # type: ignore[no-any-return]
        b, torch.add, use(b, torch.mul, input, rest), use(b, torch.mul, end, weight)
    )


@lowers(torch.hypot, "Tensor.hypot", aten.hypot.default)
def _(b: Lowering, input: Value, other: Value) -> Value:
    both = b.emit("stack", *_together(b, input, other), dim=0)
    return b.emit("vector_norm", both, p=2.0, dims=(0,), count=2, keepdim=False)


def _together(b: Lowering, *values: Value) -> tuple[Value, ...]:
    """Values of one shape, also those that do not depend on the input."""
    shape = max((b.shape(value) for value in b.broadcast(*values)), key=len)
    return tuple(use(b, "Tensor.expand", v, *shape) for v in values)  # type: ignore[arg-type]


def _cross(b: Lowering, input: Value, other: Value, dim: int | None = None) -> Value:
    at = b.dim(input, -1 if dim is None else dim)
    if b.shape(input)[at] != 3:
        return b.reject("cross needs a dimension of size 3")

    def turned(x: Value, by: int) -> Value:
        return use(b, torch.roll, x, by, at)  # type: ignore[no-any-return]

    first = use(b, torch.mul, turned(input, -1), turned(other, -2))
    second = use(b, torch.mul, turned(input, -2), turned(other, -1))
    return use(b, torch.sub, first, second)  # type: ignore[no-any-return]


lowers(torch.linalg.cross, aten.linalg_cross.default)(_cross)


@lowers(torch.tensordot, aten.tensordot.default)
def _(b: Lowering, a: Value, other: Value, dims: Any = 2, dims_other: Any = None) -> Value:
    ranks = len(b.shape(a)), len(b.shape(other))
    if dims_other is not None:
        left, right = list(dims), list(dims_other)
    elif isinstance(dims, int):
        left, right = list(range(ranks[0] - dims, ranks[0])), list(range(dims))
    else:
        left, right = (list(d) if isinstance(d, tuple | list) else [d] for d in dims)
    names = list(ascii_letters[: ranks[0]])
    others = list(ascii_letters[ranks[0] : ranks[0] + ranks[1]])
    summed = []
    for i, j in zip(left, right, strict=True):
        others[b.dim(other, j)] = names[b.dim(a, i)]
        summed.append(names[b.dim(a, i)])
    out = "".join(c for c in (*names, *others) if c not in summed)
    return contract(b, ["".join(names), "".join(others)], out, [a, other], matmul)


@lowers(torch.kron, "Tensor.kron", aten.kron.default)
def _(b: Lowering, input: Value, other: Value) -> Value:
    rank = max(len(b.shape(input)), len(b.shape(other)))
    left = (1,) * (rank - len(b.shape(input))) + tuple(b.shape(input))
    right = (1,) * (rank - len(b.shape(other))) + tuple(b.shape(other))
    x = reshape_to(b, input, tuple(e for size in left for e in (size, 1)))
    y = reshape_to(b, other, tuple(e for size in right for e in (1, size)))
    product = use(b, torch.mul, x, y)
    return reshape_to(b, product, tuple(m * n for m, n in zip(left, right, strict=True)))


@lowers(torch.cosine_similarity, aten.cosine_similarity.default)
def _(b: Lowering, x1: Value, x2: Value, dim: int = 1, eps: float = 1e-8) -> Value:
    """The product of two vectors of length 1, which lies between −1 and 1."""
    first, second = _together(b, x1, x2)
    units = [use(b, F.normalize, x, 2.0, dim, eps) for x in (first, second)]
    total = use(b, torch.sum, use(b, torch.mul, *units), dim)
    return use(b, torch.clamp, total, -1.0, 1.0)  # type: ignore[no-any-return]


@lowers(torch.pairwise_distance, aten.pairwise_distance.default)
def _(
    b: Lowering, x1: Value, x2: Value, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Value:
    gap = b.emit("add_scalar", use(b, torch.sub, x1, x2), other=eps)
    return use(b, torch.linalg.vector_norm, gap, p, -1, keepdim)  # type: ignore[no-any-return]


@lowers(torch.cdist, aten.cdist.default)
def _(b: Lowering, x1: Value, x2: Value, p: float = 2.0, compute_mode: Any = None) -> Value:
    left = use(b, torch.unsqueeze, x1, -2)
    right = use(b, torch.unsqueeze, x2, -3)
    gap = use(b, torch.sub, left, right)
    return use(b, torch.linalg.vector_norm, gap, p, -1)  # type: ignore[no-any-return]


def _product(b: Lowering, pieces: list[Value]) -> Value:
    """Pairs of neighbours first, so that as few factors as can be are wide."""
    while len(pieces) > 1:
        pairs = zip(pieces[::2], pieces[1::2], strict=False)
        pieces = [b.emit("mul", *pair) for pair in pairs] + pieces[len(pieces) // 2 * 2 :]
    return pieces[0]


@lowers(torch.prod, "Tensor.prod", aten.prod.default, aten.prod.dim_int)
def _(
    b: Lowering, input: Value, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None
) -> Value:
    if dtype is not None:
        return b.reject("prod with dtype= has no bound rule", help="convert before it")
    flat = reshape_to(b, input, (-1,)) if dim is None else input
    at = b.dim(flat, 0 if dim is None else dim)
    size = b.shape(flat)[at]
    if not isinstance(size, int):
        return b.reject("a product along the batch dimension mixes samples")
    result = _product(b, [b.emit("select", flat, dim=at, index=i) for i in range(size)])
    shape = b.shape(result)
    return reshape_to(b, result, (*shape[:at], 1, *shape[at:])) if keepdim else result


@lowers(torch.cumprod, "Tensor.cumprod", aten.cumprod.default)
def _(b: Lowering, input: Value, dim: int, *, dtype: Any = None) -> Value:
    if dtype is not None:
        return b.reject("cumprod with dtype= has no bound rule", help="convert before it")
    at = b.dim(input, dim)
    size = b.shape(input)[at]
    if not isinstance(size, int):
        return b.reject("a product along the batch dimension mixes samples")
    done = [b.emit("select", input, dim=at, index=0)]
    for i in range(1, size):
        done.append(b.emit("mul", done[-1], b.emit("select", input, dim=at, index=i)))
    return b.emit("stack", *done, dim=at)


@lowers(F.softmin)
def _(b: Lowering, input: Value, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Value:
    return use(b, F.softmax, use(b, torch.neg, input), dim, dtype=dtype)  # type: ignore[no-any-return]
