"""add, sub, neg, mul and div, of bounded values, constants and Python numbers."""

from __future__ import annotations

import operator
import random
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm, dot, sum_over, times_constant
from boundgraph.domains.symbolic import Symbolic, diagonal
from boundgraph.ir.program import Value
from boundgraph.ops._compose import plain
from boundgraph.ops._dtypes import to_torch
from boundgraph.ops._kinds import affine, transpose_rule
from boundgraph.ops._sharing import shared
from boundgraph.ops._spec import (
    EXACT,
    Kind,
    Lowering,
    OpCase,
    OpSpec,
    Rounding,
    broadcast_batch,
    keep_batch,
    lowers,
    register,
)
from boundgraph.ops.selection import where
from boundgraph.relaxations.bilinear import flattest

aten = torch.ops.aten
Operand = Any
_plane = shared(flattest)


def _add_interval(a: Operand, b: Operand) -> Interval:
    if not isinstance(b, Interval):
        return Interval.from_center_radius(a.center + b, a.radius)
    if not isinstance(a, Interval):
        return Interval.from_center_radius(b.center + a, b.radius)
    return Interval(a.lower + b.lower, a.upper + b.upper)


def _sub_interval(a: Operand, b: Operand) -> Interval:
    if not isinstance(b, Interval):
        return Interval.from_center_radius(a.center - b, a.radius)
    if not isinstance(a, Interval):
        return Interval.from_center_radius(a - b.center, b.radius)
    return Interval(a.lower - b.upper, a.upper - b.lower)


def _combine(a: Operand, b: Operand, sign: float) -> Symbolic:
    x = a if isinstance(a, Symbolic) else Symbolic(a, {})
    y = b if isinstance(b, Symbolic) else Symbolic(b, {})
    return x.combine(y, sign)


def _mul_interval(a: Operand, b: Operand) -> Interval:
    """Extremes of a product are at corners; a constant factor only scales."""
    if not isinstance(b, Interval):
        return Interval.from_center_radius(a.center * b, a.radius * b.abs())
    if not isinstance(a, Interval):
        return Interval.from_center_radius(b.center * a, b.radius * a.abs())
    corners = (a.lower * b.lower, a.lower * b.upper, a.upper * b.lower, a.upper * b.upper)
    first, second = torch.minimum(*corners[:2]), torch.minimum(*corners[2:])
    third, fourth = torch.maximum(*corners[:2]), torch.maximum(*corners[2:])
    return Interval(torch.minimum(first, second), torch.maximum(third, fourth))


def _mul_symbolic(
    a: Operand,
    b: Operand,
    *pre: Interval,
    block: str = "",
    batch_dim: int | None = None,
    features: tuple[int, ...] = (),
) -> Symbolic:
    """`(c + g)(d + h) = cd + c·h + d·g + g·h`; |g·h| is at most the product of the radii.

    A product with a constant is exact and adds no block.
    """
    if not isinstance(a, Symbolic):
        return b.map(lambda c: c * a, lambda g: g * a)
    if not isinstance(b, Symbolic):
        return a.map(lambda c: c * b, lambda g: g * b)
    left = a.map(lambda _: a.center * b.center, lambda g: g * b.center)
    right = b.map(torch.zeros_like, lambda h: h * a.center)
    error = a.concretize().radius * b.concretize().radius
    return left.combine(right).with_block(block, diagonal(error, batch_dim, features))


def _linear_backward(sign: float) -> Any:
    """a + sign·b: each operand gets the coefficients, a constant one becomes offset."""

    def backward(
        form: LinearForm,
        *constants: Tensor,
        operand: int,
        carry: bool,
        sample_dims: tuple[int, ...],
        shapes: tuple[tuple[int, ...], ...],
        **_: Any,
    ) -> LinearForm:
        own = sign if operand == 1 else 1.0
        coeff = form.coeff if own == 1.0 else -form.coeff
        if constants:
            # Samples that shared coefficients no longer do where the constant differs.
            coeff = coeff.expand((-1, *shapes[operand]))
        if not carry:
            return LinearForm(coeff)
        if not constants:
            return LinearForm(coeff, form.offset)
        other = 1.0 if operand == 1 else sign
        return LinearForm(
            coeff,
            form.shifted(sum_over(times_constant(form.coeff, constants[0]), sample_dims) * other),
        )

    return backward


def _mul_backward(
    form: LinearForm,
    *operands: Any,
    operand: int,
    carry: bool,
    sample_dims: tuple[int, ...],
    parallel: bool = False,
    **_: Any,
) -> LinearForm:
    """A constant factor scales; two bounded factors take McCormick's planes.

    Of the two planes of a side the one that varies less over the box (`flattest`); with
    `parallel` the mean of both.
    """
    if len(operands) == 1:
        return LinearForm(form.coeff * operands[0], form.offset if carry else None)
    x, y = operands
    if parallel:
        coeff = form.coeff * (y.center if operand == 0 else x.center)
        if not carry:
            return LinearForm(coeff)
        term = form.coeff * (x.center * y.center) + form.coeff.abs() * (x.radius * y.radius)
        return LinearForm(coeff, form.shifted(-sum_over(term, sample_dims)))
    below, above = (_plane(x, y, upper=upper) for upper in (False, True))
    positive, negative = torch.relu(form.coeff), -torch.relu(-form.coeff)
    slopes = (below.left, above.left) if operand == 0 else (below.right, above.right)
    coeff = torch.addcmul(positive * slopes[0], negative, slopes[1])
    if not carry:
        return LinearForm(coeff)
    term = dot(positive, below.offset, sample_dims) + dot(negative, above.offset, sample_dims)
    return LinearForm(coeff, form.shifted(term))


def _sample_pair(rng: random.Random) -> OpCase:
    shape = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 3)))
    return OpCase((shape, shape), bounded=rng.choice(((0,), (1,), (0, 1))))


def _sample_left(rng: random.Random) -> OpCase:
    shape = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 3)))
    return OpCase((shape, shape), low=0.5)


register(
    OpSpec(
        "add",
        Kind.AFFINE,
        torch.add,
        interval=_add_interval,
        symbolic=lambda a, b: _combine(a, b, 1.0),
        magnitude=torch.add,
        batch=broadcast_batch,
        rounding=Rounding(terms=lambda *_, **__: 2),
        backward=_linear_backward(1.0),
        sample=_sample_pair,
        summary="a + b",
    )
)
register(
    OpSpec(
        "sub",
        Kind.AFFINE,
        torch.sub,
        interval=_sub_interval,
        symbolic=lambda a, b: _combine(a, b, -1.0),
        magnitude=torch.add,
        batch=broadcast_batch,
        rounding=Rounding(terms=lambda *_, **__: 2),
        backward=_linear_backward(-1.0),
        sample=_sample_pair,
        summary="a − b",
    )
)
register(
    OpSpec(
        "mul",
        Kind.BILINEAR,
        torch.mul,
        interval=_mul_interval,
        symbolic=_mul_symbolic,
        relaxed=True,
        magnitude=torch.mul,
        batch=broadcast_batch,
        rounding=Rounding(terms=lambda *_, **__: 3),
        backward=_mul_backward,
        sample=_sample_pair,
        summary="a · b, either or both bounded",
    )
)
register(
    OpSpec(
        "div",
        Kind.AFFINE,
        torch.div,
        interval=lambda a, b: Interval.from_center_radius(a.center / b, a.radius / b.abs()),
        symbolic=lambda a, b: a.map(lambda c: c / b, lambda g: g / b),
        magnitude=torch.div,
        boundable=(0,),
        batch=broadcast_batch,
        rounding=Rounding(ulps=1, terms=lambda *_, **__: 2),
        backward=transpose_rule(lambda coeff, b, **_: coeff / b),
        sample=_sample_left,
        summary="a / b, b constant",
    )
)


def _scalar_sample(rng: random.Random) -> OpCase:
    shape = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 3)))
    return OpCase((shape,), {"other": rng.choice((-2.5, -1.0, 0.25, 3.0))})


def _add_scalar(x: Tensor, *, other: float) -> Tensor:
    return x + other


affine(
    "add_scalar",
    _add_scalar,
    linear=lambda x, *, other: x,
    adjoint=lambda coeff, **_: coeff,
    constant=lambda coeff, *, dims, other: sum_over(coeff, dims) * other,
    leading=True,
    batch=keep_batch,
    rounding=Rounding(ulps=1, terms=lambda *_, **__: 2, offset=lambda x, *, other: abs(other)),
    sample=_scalar_sample,
    summary="a + number",
)
affine(
    "mul_scalar",
    lambda x, *, other: x * other,
    magnitude=lambda x, *, other: x * abs(other),
    adjoint=lambda coeff, *, other, **_: coeff * other,
    leading=True,
    batch=keep_batch,
    rounding=Rounding(ulps=1, terms=lambda *_, **__: 2),
    sample=_scalar_sample,
    summary="a · number",
)
affine(
    "div_scalar",
    lambda x, *, other: x / other,
    magnitude=lambda x, *, other: x / abs(other),
    adjoint=lambda coeff, *, other, **_: coeff / other,
    leading=True,
    batch=keep_batch,
    rounding=Rounding(ulps=1, terms=lambda *_, **__: 2),
    sample=_scalar_sample,
    summary="a / number",
)
affine(
    "neg",
    torch.neg,
    magnitude=lambda x: x,
    adjoint=lambda coeff, **_: -coeff,
    leading=True,
    batch=keep_batch,
    rounding=EXACT,
    sample=lambda rng: OpCase(_scalar_sample(rng).shapes),
    summary="−a",
)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _binary(b: Lowering, op: str, left: Any, right: Any) -> Value:
    """Emit a broadcasting op; bounded operands are expanded to the result's shape first."""
    if b.depends(left) or b.depends(right):
        for mask, side in ((left, right), (right, left)):
            if op == "mul" and _is_mask(b, mask) and side.type.is_float:
                return where(b, mask, side, 0.0)
        left, right = _numbers(b, left, right), _numbers(b, right, left)
    return b.emit(op, *b.broadcast(left, right))


def _is_mask(b: Lowering, value: Any) -> bool:
    return isinstance(value, Value) and value.type.dtype == "bool" and b.depends(value)


def _number(b: Lowering, number: float, like: Value) -> Value:
    return b.tensor(torch.tensor(number, dtype=to_torch(like.type.dtype)))


def _numbers(b: Lowering, value: Any, like: Any) -> Any:
    """A mask beside numbers is 0 or 1."""
    if not isinstance(value, Value) or value.type.dtype != "bool" or not like.type.is_float:
        return value
    if b.depends(value):
        return where(b, value, *(_number(b, n, like) for n in (1.0, 0.0)))
    return plain(b, "Tensor.to", value, to_torch(like.type.dtype))


def _add(b: Lowering, input: Any, other: Any, alpha: float = 1) -> Value:
    if _is_number(input):
        input, other = other, input
        if alpha != 1:
            input = b.emit("mul_scalar", input, other=float(alpha))
    elif alpha != 1:
        other = other * alpha if _is_number(other) else b.emit("mul_scalar", other, other=alpha)
    if _is_number(other):
        return b.emit("add_scalar", input, other=other) if other else input
    return _binary(b, "add", input, other)


def _sub(b: Lowering, input: Any, other: Any, alpha: float = 1) -> Value:
    if alpha != 1:
        other = other * alpha if _is_number(other) else b.emit("mul_scalar", other, other=alpha)
    if _is_number(other):
        return b.emit("add_scalar", input, other=-other) if other else input
    if _is_number(input):
        return b.emit("add_scalar", b.emit("neg", other), other=input)
    return _binary(b, "sub", input, other)


def _mul(b: Lowering, input: Any, other: Any) -> Value:
    if _is_number(input):
        input, other = other, input
    if _is_number(other):
        if _is_mask(b, input):
            like = torch.get_default_dtype() if isinstance(other, float) else torch.int64
            return where(b, input, *(b.tensor(torch.tensor(n, dtype=like)) for n in (other, 0)))
        return b.emit("mul_scalar", input, other=other)
    if input is other and b.depends(input):
        return b.emit("square", input)
    return _binary(b, "mul", input, other)


def _div(b: Lowering, input: Any, other: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode is not None:
        return b.reject(f"division with rounding_mode={rounding_mode!r} has no bound rule")
    if _is_number(other):
        return b.emit("div_scalar", input, other=other)
    if not b.depends(other):
        numerator = b.tensor(input, like=other) if _is_number(input) else input
        return _binary(b, "div", numerator, other)
    inverse = b.emit("reciprocal", other)
    return inverse if _is_number(input) and input == 1 else _mul(b, input, inverse)


lowers(operator.add, operator.iadd, torch.add, "Tensor.add", "Tensor.add_", "Tensor.__iadd__")(_add)
lowers(aten.add.Tensor, aten.add_.Tensor, aten.add.Scalar, aten.add_.Scalar)(_add)
lowers(operator.sub, operator.isub, torch.sub, torch.subtract, "Tensor.sub", "Tensor.sub_")(_sub)
lowers(aten.sub.Tensor, aten.sub_.Tensor, aten.sub.Scalar, aten.sub_.Scalar)(_sub)
lowers(operator.mul, operator.imul, torch.mul, torch.multiply, "Tensor.mul", "Tensor.mul_")(_mul)
lowers(aten.mul.Tensor, aten.mul_.Tensor, aten.mul.Scalar, aten.mul_.Scalar)(_mul)
lowers(operator.truediv, operator.itruediv, torch.div, torch.true_divide)(_div)
lowers("Tensor.div", "Tensor.div_", "Tensor.true_divide")(_div)
lowers(aten.div.Tensor, aten.div_.Tensor, aten.div.Scalar, aten.div_.Scalar)(_div)


@lowers(torch.rsub, aten.rsub.Scalar, aten.rsub.Tensor)
def _(b: Lowering, input: Any, other: Any, alpha: float = 1) -> Value:
    return _sub(b, other, input, alpha)


@lowers(operator.neg, torch.neg, torch.negative, "Tensor.neg", "Tensor.neg_", aten.neg.default)
def _(b: Lowering, input: Value) -> Value:
    return b.emit("neg", input)


@lowers(operator.pos)
def _(b: Lowering, input: Value) -> Value:
    return input
