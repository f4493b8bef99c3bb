"""maximum and minimum of two tensors, and a choice by a fixed mask."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval, as_interval, meet
from boundgraph.domains.linear_form import LinearForm, sum_over, times_constant
from boundgraph.domains.symbolic import Symbolic, diagonal
from boundgraph.ir.program import Value
from boundgraph.ops._spec import (
    EXACT,
    Kind,
    Lowering,
    OpCase,
    OpSpec,
    broadcast_batch,
    lowers,
    register,
)
from boundgraph.relaxations.relu import relu_lines, relu_parallel

aten = torch.ops.aten
Operand = Any


def _difference(a: Operand, b: Operand) -> Interval:
    """a − b."""
    first, second = as_interval(a), as_interval(b)
    return Interval(first.lower - second.upper, first.upper - second.lower)


def _extreme_interval(sign: float) -> Any:
    pick = torch.maximum if sign > 0 else torch.minimum

    def interval(a: Operand, b: Operand) -> Interval:
        first, second = as_interval(a), as_interval(b)
        return Interval(pick(first.lower, second.lower), pick(first.upper, second.upper))

    return interval


def _zonotope(value: Operand) -> Symbolic:
    return value if isinstance(value, Symbolic) else Symbolic(value, {})


def _extreme_symbolic(sign: float) -> Any:
    """max(a, b) = b + relu(a − b) and min(a, b) = b − relu(b − a)."""

    def symbolic(
        a: Operand,
        b: Operand,
        *pre: Interval,
        block: str,
        batch_dim: int | None,
        features: tuple[int, ...],
    ) -> Symbolic:
        ranges = iter(pre)
        first, second = (
            next(ranges) if isinstance(value, Symbolic) else as_interval(value) for value in (a, b)
        )
        left, right = _zonotope(a), _zonotope(b)
        gap = left.combine(right, -1.0).concretize()
        inner = meet(_difference(first, second), gap)
        if sign < 0:
            inner = Interval(-inner.upper, -inner.lower)
        band = relu_parallel(inner)
        # ±relu(±d) lies around slope·d ± middle for either sign. Not b + slope·(a − b), which
        # cancels where a is small beside b.
        share, rest = band.slope, 1.0 - band.slope
        moved = left.map(lambda c: share * c + band.middle * sign, lambda g: share * g).combine(
            right.map(lambda c: rest * c, lambda g: rest * g)
        )
        return moved.with_block(block, diagonal(band.half_gap, batch_dim, features))

    return symbolic


def _extreme_backward(sign: float) -> Any:
    """b ± relu(±(a − b)) by the lines of relu over the difference."""

    def backward(
        form: LinearForm,
        a: Operand,
        b: Operand,
        *,
        operand: int,
        carry: bool,
        sample_dims: tuple[int, ...],
        **_: Any,
    ) -> LinearForm:
        gap = _difference(a, b) if sign > 0 else _difference(b, a)
        lines = relu_lines(gap)
        # max(a, b) ≥ b + s·(a − b); min(a, b) ≤ b − s·(b − a): the same slope of a.
        low, high = lines.lower_slope, lines.upper_slope
        offset = lines.upper_offset
        if sign < 0:
            low, high = high, low
        positive, negative = form.coeff.clamp(min=0.0), form.coeff.clamp(max=0.0)
        to_first = positive * low + negative * high
        to_second = positive * (1.0 - low) + negative * (1.0 - high)
        coeff = to_first if operand == 0 else to_second
        if not carry:
            return LinearForm(coeff)
        term = negative * offset if sign > 0 else -(positive * offset)
        if not isinstance(a, Interval):
            term = term + to_first * a
        if not isinstance(b, Interval):
            term = term + to_second * b
        return LinearForm(coeff, form.shifted(term.sum(sample_dims)))

    return backward


def _sample_pair(rng: random.Random) -> OpCase:
    shape = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 3)))
    return OpCase((shape, shape), bounded=rng.choice(((0,), (1,), (0, 1))))


for _name, _sign, _text in (("maximum", 1.0, "larger"), ("minimum", -1.0, "smaller")):
    register(
        OpSpec(
            _name,
            Kind.SELECTION,
            getattr(torch, _name),
            interval=_extreme_interval(_sign),
            symbolic=_extreme_symbolic(_sign),
            relaxed=True,
            magnitude=torch.add,
            batch=broadcast_batch,
            rounding=EXACT,
            backward=_extreme_backward(_sign),
            sample=_sample_pair,
            summary=f"the {_text} of two tensors, either or both bounded",
        )
    )


def _two(op: str) -> Any:
    def lower(b: Lowering, input: Any, other: Any) -> Value:
        return b.emit(op, *b.broadcast(input, other))

    return lower


lowers(torch.maximum, torch.fmax, "Tensor.maximum", "Tensor.fmax", aten.maximum.default)(
    _two("maximum")
)
lowers(torch.minimum, torch.fmin, "Tensor.minimum", "Tensor.fmin", aten.minimum.default)(
    _two("minimum")
)
lowers(aten.fmax.default)(_two("maximum"))
lowers(aten.fmin.default)(_two("minimum"))


def _where_interval(mask: Tensor, a: Operand, b: Operand) -> Interval:
    first, second = as_interval(a), as_interval(b)
    return Interval(
        torch.where(mask, first.lower, second.lower), torch.where(mask, first.upper, second.upper)
    )


def _where_symbolic(mask: Tensor, a: Operand, b: Operand) -> Symbolic:
    first, second = _zonotope(a), _zonotope(b)
    blocks = {name: torch.where(mask, block, 0.0) for name, block in first.blocks.items()}
    for name, block in second.blocks.items():
        kept = torch.where(mask, 0.0, block)
        blocks[name] = blocks[name] + kept if name in blocks else kept
    return Symbolic(torch.where(mask, first.center, second.center), blocks)


def _where_backward(
    form: LinearForm,
    mask: Tensor,
    *constants: Tensor,
    operand: int,
    carry: bool,
    sample_dims: tuple[int, ...],
    **_: Any,
) -> LinearForm:
    """Coefficients go to the side that the mask picks; a constant side becomes offset."""
    ours = torch.where(mask, form.coeff, 0.0)
    other = torch.where(mask, 0.0, form.coeff)
    if operand == 2:
        ours, other = other, ours
    if not carry:
        return LinearForm(ours)
    if not constants:
        return LinearForm(ours, form.offset)
    # 0 where the mask leaves the constant out, so that no infinity there is multiplied by 0.
    constant = constants[0]
    picked = torch.where(mask, 0.0, constant) if operand == 1 else torch.where(mask, constant, 0.0)
    return LinearForm(ours, form.shifted(sum_over(times_constant(other, picked), sample_dims)))


def _where_batch(batch_dims: Any, shapes: Any, out: Any) -> int | None:
    return broadcast_batch(batch_dims[1:], shapes[1:], out)


def _sample_where(rng: random.Random) -> OpCase:
    shape = tuple(rng.randint(2, 4) for _ in range(rng.randint(2, 3)))
    return OpCase((shape, shape, shape), bounded=rng.choice(((1,), (2,), (1, 2))), masks=(0,))


register(
    OpSpec(
        "where",
        Kind.STRUCTURAL,
        torch.where,
        interval=_where_interval,
        symbolic=_where_symbolic,
        magnitude=torch.where,
        boundable=(1, 2),
        batch=_where_batch,
        backward=_where_backward,
        sample=_sample_where,
        summary="one of two tensors by a fixed mask",
    )
)


def where(b: Lowering, condition: Any, input: Any, other: Any) -> Value:
    """A choice by a mask, everything broadcast."""
    sides = [
        side if b.is_tensor(side) else b.tensor(side, _like(b, input, other))
        for side in (input, other)
    ]
    if b.depends(condition):
        return _by_comparison(b, condition, *sides)
    return b.emit("where", *b.broadcast(condition, *sides))


# Whether the first operand is the larger one, and whether equal operands count as not.
_COMPARISONS = {
    **dict.fromkeys(("gt", "greater"), (True, True)),
    **dict.fromkeys(("ge", "greater_equal"), (True, False)),
    **dict.fromkeys(("lt", "less"), (False, True)),
    **dict.fromkeys(("le", "less_equal"), (False, False)),
}
# What a mask of masks is, by the names that torch and Python have for it.
_AND = ("and_", "logical_and", "bitwise_and", "__and__", "iand")
_OR = ("or_", "logical_or", "bitwise_or", "__or__", "ior")
_XOR = ("xor", "logical_xor", "bitwise_xor", "__xor__", "ixor")
_NOT = ("invert", "logical_not", "bitwise_not", "__invert__")
_EQUAL = {"eq": True, "ne": False, "not_equal": False}


def _compound(b: Lowering, name: str, args: Any, first: Any, second: Any) -> Value | None:
    """A choice by several comparisons as choices by one each; None for any other mask."""
    if name in _NOT:
        return where(b, args[0], second, first)
    if name in _AND:
        return where(b, args[0], where(b, args[1], first, second), second)
    if name in _OR:
        return where(b, args[0], first, where(b, args[1], first, second))
    if name in _XOR:
        inner = where(b, args[1], second, first), where(b, args[1], first, second)
        return where(b, args[0], *inner)
    if name not in _EQUAL:
        return None
    same, other = (first, second) if _EQUAL[name] else (second, first)
    # Equal is neither above nor below.
    left, right = args
    not_above = _greater(b, left, right, other, same, strict=True)
    return _greater(b, right, left, other, not_above, strict=True)


def _greater(
    b: Lowering, left: Any, right: Any, first: Value, second: Value, *, strict: bool
) -> Value:
    like = _like(b, *(side for side in (left, right) if b.depends(side)))
    operands = [b.tensor(side, like) for side in (left, right)]
    if not all(value.type.is_float for value in (*operands, first, second)):
        return b.reject("a choice by a comparison of whole numbers has no bound rule")
    return b.emit("where_greater", *b.broadcast(*operands, first, second), strict=strict)


def _by_comparison(b: Lowering, condition: Value, first: Value, second: Value) -> Value:
    """A choice by `a > b`, of which the region may decide some elements."""
    target, args = b.called(condition) or ("", ())
    name = target.removesuffix(".Scalar").removesuffix(".Tensor").removesuffix(".default")
    name = name.rpartition(".")[2]
    found = _compound(b, name, args, first, second)
    if found is not None:
        return found
    if name not in _COMPARISONS or len(args) != 2:
        return b.reject(
            "a choice by a mask that depends on the input has bounds only where the mask is made "
            "of comparisons (>, >=, <, <=, ==, !=) by &, |, ^ and ~",
            help="write it as nested torch.where, one comparison each",
        )
    forward, strict = _COMPARISONS[name]
    left, right = args if forward else args[::-1]
    return _greater(b, left, right, first, second, strict=strict)


def _like(b: Lowering, *sides: Any) -> Value | None:
    return next((b.tensor(side) for side in sides if b.is_tensor(side)), None)


@lowers(torch.where, aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)
@lowers(aten.where.Scalar)
def _(b: Lowering, condition: Any, input: Any, other: Any) -> Value:
    return where(b, condition, input, other)


@lowers("Tensor.where")
def _(b: Lowering, input: Any, condition: Any, other: Any) -> Value:
    return where(b, condition, input, other)


@lowers(torch.masked_fill, "Tensor.masked_fill", aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _(b: Lowering, input: Value, mask: Value, value: Any) -> Value:
    return where(b, mask, value, input)
