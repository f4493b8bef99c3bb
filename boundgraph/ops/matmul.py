"""Matrix products in which either or both factors are bounded, and what torch builds on them."""

from __future__ import annotations

import operator
import random
from string import ascii_letters
from typing import Any

import torch
import torch.nn.functional as F

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm
from boundgraph.domains.symbolic import Symbolic, diagonal
from boundgraph.ir.program import Value
from boundgraph.ops._contraction import contract, expand_to, parse
from boundgraph.ops._spec import Kind, Lowering, OpCase, OpSpec, Rounding, lowers, register
from boundgraph.relaxations.bilinear import product_interval

aten = torch.ops.aten
Operand = Any


def _interval(a: Operand, b: Operand) -> Interval:
    """A constant factor acts by its absolute value on the radius."""
    if not isinstance(b, Interval):
        return Interval.from_center_radius(
            torch.matmul(a.center, b), torch.matmul(a.radius, b.abs())
        )
    if not isinstance(a, Interval):
        return Interval.from_center_radius(
            torch.matmul(a, b.center), torch.matmul(a.abs(), b.radius)
        )
    return product_interval(a, b, torch.matmul)


def _symbolic(
    a: Operand,
    b: Operand,
    *pre: Interval,
    block: str = "",
    batch_dim: int | None = None,
    features: tuple[int, ...] = (),
) -> Symbolic:
    """`(c + g)(d + h) = cd + c·h + g·d + g·h`; |g·h| is at most the product of the radii."""
    if not isinstance(a, Symbolic):
        return b.map(lambda c: torch.matmul(a, c), lambda g: torch.matmul(a, g))
    if not isinstance(b, Symbolic):
        return a.map(lambda c: torch.matmul(c, b), lambda g: torch.matmul(g, b))
    left = a.map(lambda _: torch.matmul(a.center, b.center), lambda g: torch.matmul(g, b.center))
    right = b.map(lambda _: torch.zeros_like(left.center), lambda h: torch.matmul(a.center, h))
    error = torch.matmul(a.concretize().radius, b.concretize().radius)
    return left.combine(right).with_block(block, diagonal(error, batch_dim, features))


def _backward(
    form: LinearForm,
    *operands: Any,
    operand: int,
    carry: bool,
    sample_dims: tuple[int, ...],
    **_: Any,
) -> LinearForm:
    """A constant factor is transposed; two bounded ones take the mean of McCormick's planes.

    On [xl, xu] × [yl, yu] with centres c and radii r both lower planes, yl·x + xl·y − xl·yl
    and yu·x + xu·y − xu·yu, are below xy, and so is their mean yc·x + xc·y − xc·yc − xr·yr;
    likewise yc·x + xc·y − xc·yc + xr·yr is above. The slopes are the same for either sign of
    a coefficient, so that each factor takes one product, and no single product of elements
    needs to be formed.
    """
    if len(operands) == 1:
        (other,) = operands
        flipped = other.transpose(-1, -2)
        coeff = (
            torch.matmul(form.coeff, flipped) if operand == 0 else torch.matmul(flipped, form.coeff)
        )
        return LinearForm(coeff, form.offset if carry else None)
    x, y = operands
    if operand == 0:
        coeff = torch.matmul(form.coeff, y.center.transpose(-1, -2))
    else:
        coeff = torch.matmul(x.center.transpose(-1, -2), form.coeff)
    if not carry:
        return LinearForm(coeff)
    middle = torch.matmul(x.center, y.center)
    half_gap = torch.matmul(x.radius, y.radius)
    term = form.coeff * middle + form.coeff.abs() * half_gap
    return LinearForm(coeff, form.shifted(-term.sum(sample_dims)))


def _batch(batch_dims: Any, shapes: Any, out: Any) -> int | None:
    """Rows of the left factor, columns of the right one and the dimensions before stay apart."""
    found = set()
    for position, (dim, shape) in enumerate(zip(batch_dims, shapes, strict=True)):
        if dim is None:
            continue
        if dim == len(shape) - 1 - position:
            return None
        found.add(len(out) - len(shape) + dim)
    return found.pop() if len(found) == 1 else None


def _sample(rng: random.Random) -> OpCase:
    lead = tuple(rng.randint(1, 3) for _ in range(rng.randint(0, 2)))
    n, k, m = (rng.randint(1, 4) for _ in range(3))
    bounded = rng.choice(((0,), (1,), (0, 1), (0, 1)))
    return OpCase(((*lead, n, k), (*lead, k, m)), bounded=bounded)


register(
    OpSpec(
        "matmul",
        Kind.BILINEAR,
        torch.matmul,
        interval=_interval,
        symbolic=_symbolic,
        relaxed=True,
        magnitude=torch.matmul,
        batch=_batch,
        # The rule adds five products, each as large as the magnitude at most.
        rounding=Rounding(terms=lambda a, b, **_: 4 * (a.shape[-1] + 4)),
        backward=_backward,
        sample=_sample,
        summary="a · b, either or both bounded",
    )
)


def matmul(b: Lowering, left: Value, right: Value) -> Value:
    """`torch.matmul` of vectors, matrices and batches of them."""
    ranks = len(b.shape(left)), len(b.shape(right))
    if ranks[0] > 1 and ranks[1] == 2 and b.depends(left) and not b.depends(right):
        return b.emit("linear", left, b.emit("permute", right, dims=(1, 0)))
    if ranks[0] == 1:
        left = b.emit("reshape", left, shape=(1, *b.shape(left)))
    if ranks[1] == 1:
        right = b.emit("reshape", right, shape=(*b.shape(right), 1))
    lead = _common(b.shape(left)[:-2], b.shape(right)[:-2])
    left, right = (
        expand_to(b, side, (*lead, *b.shape(side)[-2:])) if b.depends(side) else side
        for side in (left, right)
    )
    result = b.emit("matmul", left, right)
    shape = b.shape(result)
    if ranks[1] == 1:
        shape = shape[:-1]
    if ranks[0] == 1:
        shape = shape[:-1] if ranks[1] == 1 else (*shape[:-2], shape[-1])
    return result if shape == b.shape(result) else b.emit("reshape", result, shape=shape)


def _common(left: Any, right: Any) -> tuple[Any, ...]:
    """The broadcast of two shapes."""
    rank = max(len(left), len(right))
    pairs = zip((1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right, strict=True)
    return tuple(other if own == 1 else own for own, other in pairs)


def _einsum(b: Lowering, equation: Any, *operands: Any, path: Any = None) -> Value:
    if not isinstance(equation, str):
        return b.reject("einsum with lists of indices", help="write the equation as text")
    values = list(operands[0] if isinstance(operands[0], tuple | list) else operands)
    try:
        letters, out = parse(equation, (len(b.shape(value)) for value in values))
    except ValueError as error:
        return b.reject(f"einsum {error}")
    return contract(b, letters, out, values, matmul)


def scaled_sum(b: Lowering, input: Any, product: Value, beta: float, alpha: float) -> Value:
    """`beta·input + alpha·product`."""
    if alpha != 1:
        product = b.emit("mul_scalar", product, other=alpha)
    if beta != 1:
        input = b.emit("mul_scalar", input, other=beta)
    return b.emit("add", *b.broadcast(product, input))


def _dot(b: Lowering, input: Value, other: Value) -> Value:
    """Over the last dimension of both; a scalar scales."""
    left, right = len(b.shape(input)), len(b.shape(other))
    if not left or not right:
        return b.emit("mul", *b.broadcast(input, other))
    names, more = ascii_letters[: left - 1], ascii_letters[left : left + right - 1]
    return contract(b, [f"{names}Z", f"{more}Z"], names + more, [input, other], matmul)


def _outer(b: Lowering, input: Value, vec2: Value) -> Value:
    return contract(b, ["i", "j"], "ij", [input, vec2], matmul)


def _bilinear(
    b: Lowering, input1: Value, input2: Value, weight: Value, bias: Value | None = None
) -> Value:
    lead = ascii_letters[: len(b.shape(input1)) - 1]
    letters = [f"{lead}X", "ZXY", f"{lead}Y"]
    result = contract(b, letters, f"{lead}Z", [input1, weight, input2], matmul)
    return result if bias is None else b.emit("add", *b.broadcast(result, bias))


def _product(b: Lowering, input: Value, other: Value) -> Value:
    return matmul(b, input, other)


lowers(torch.matmul, operator.matmul, torch.linalg.matmul, "Tensor.matmul")(_product)
lowers("Tensor.__matmul__", aten.matmul.default, operator.imatmul)(_product)
lowers(aten.linalg_matmul.default)(_product)


@lowers("Tensor.__rmatmul__")
def _(b: Lowering, input: Value, other: Value) -> Value:
    return matmul(b, other, input)


@lowers(torch.mm, torch.bmm, "Tensor.mm", "Tensor.bmm", aten.mm.default, aten.bmm.default)
def _(b: Lowering, input: Value, mat2: Value) -> Value:
    return matmul(b, input, mat2)


@lowers(torch.mv, "Tensor.mv", aten.mv.default)
def _(b: Lowering, input: Value, vec: Value) -> Value:
    return matmul(b, input, vec)


@lowers(torch.dot, "Tensor.dot", aten.dot.default)
def _(b: Lowering, input: Value, tensor: Value) -> Value:
    return matmul(b, input, tensor)


@lowers(torch.vdot, "Tensor.vdot", aten.vdot.default)
def _(b: Lowering, input: Value, other: Value) -> Value:
    return matmul(b, input, other)


@lowers(torch.baddbmm, "Tensor.baddbmm", aten.baddbmm.default)
def _(
    b: Lowering, input: Value, batch1: Value, batch2: Value, *, beta: float = 1, alpha: float = 1
) -> Value:
    return scaled_sum(b, input, matmul(b, batch1, batch2), beta, alpha)


lowers(torch.einsum, aten.einsum.default)(_einsum)
lowers(torch.inner, "Tensor.inner", aten.inner.default)(_dot)
lowers(torch.outer, torch.ger, "Tensor.outer", aten.outer.default)(_outer)
lowers(F.bilinear, aten.bilinear.default)(_bilinear)
