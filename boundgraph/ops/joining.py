"""Ops that put tensors together: cat, stack."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval, as_interval
from boundgraph.domains.linear_form import LinearForm
from boundgraph.domains.symbolic import Symbolic
from boundgraph.ir.program import Value
from boundgraph.ops._samples import random_shape
from boundgraph.ops._spec import (
    Kind,
    Lowering,
    OpCase,
    OpSpec,
    lowers,
    register,
)
from boundgraph.ops.views import reshape_to

aten = torch.ops.aten


def _joined_blocks(operands: tuple[Any, ...], join: Any) -> dict[str, Tensor]:
    """Join the generators of several operands; an operand without a block contributes zeros."""
    symbolics = [x if isinstance(x, Symbolic) else Symbolic(x, {}) for x in operands]
    blocks: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for x in symbolics for name in x.blocks):
        symbols = next(x.blocks[name] for x in symbolics if name in x.blocks).shape[0]
        parts = [
            x.blocks[name]
            if name in x.blocks
            else torch.zeros_like(x.center).unsqueeze(0).repeat_interleave(symbols, 0)
            for x in symbolics
        ]
        blocks[name] = join(parts)
    return blocks


def _part(name: str, coeff: Tensor, operand: int, shapes: Any, dim: int) -> Tensor:
    """The coefficients that a join took from one of its operands."""
    if name == "stack":
        return coeff.select(dim + 1, operand)
    start = sum(shape[dim] for shape in shapes[:operand])
    return coeff.narrow(dim + 1, start, shapes[operand][dim])


def _join_op(name: str, fn: Any, batch: Any, sample: Any, summary: str) -> OpSpec:
    def concrete(*parts: Tensor, dim: int) -> Tensor:
        return fn(parts, dim=dim)

    def interval(*parts: Any, dim: int) -> Interval:
        bounds = [as_interval(part) for part in parts]
        return Interval(
            fn([bound.lower for bound in bounds], dim=dim),
            fn([bound.upper for bound in bounds], dim=dim),
        )

    def symbolic(*parts: Any, dim: int) -> Symbolic:
        centers = [part.center if isinstance(part, Symbolic) else part for part in parts]
        blocks = _joined_blocks(parts, lambda tensors: fn(tensors, dim=dim + 1))
        return Symbolic(fn(centers, dim=dim), blocks)

    def backward(
        form: LinearForm,
        *constants: Tensor,
        operand: int,
        carry: bool,
        shapes: Any,
        target: Any,
        sample_dims: tuple[int, ...],
        plain: tuple[int, ...],
        dim: int,
    ) -> LinearForm:
        # Coefficients that samples share become their own where a constant operand differs.
        coeff = _part(name, form.coeff, operand, shapes, dim).expand((-1, *shapes[operand]))
        if not carry:
            return LinearForm(coeff)
        shifted = form
        for position, value in zip(plain, constants, strict=True):
            own = _part(name, form.coeff, position, shapes, dim)
            # A stacked operand lacks the new dimension, so the later ones are one lower.
            own_dims = sample_dims
            if name == "stack":
                own_dims = tuple(d - (d > dim + 1) for d in sample_dims if d != dim + 1)
            term = own * value
            shifted = LinearForm(
                form.coeff, shifted.shifted(term.sum(own_dims) if own_dims else term)
            )
        return LinearForm(coeff, shifted.offset)

    return register(
        OpSpec(
            name,
            Kind.STRUCTURAL,
            concrete,
            interval=interval,
            symbolic=symbolic,
            magnitude=concrete,
            batch=batch,
            backward=backward,
            sample=sample,
            summary=summary,
        )
    )


def _agree(dims: set[int | None]) -> int | None:
    dims.discard(None)
    return dims.pop() if len(dims) == 1 else None


def _cat_batch(batch_dims: Any, *_: Any, dim: int, **__: Any) -> int | None:
    batch = _agree(set(batch_dims))
    return None if batch == dim else batch


def _stack_batch(batch_dims: Any, *_: Any, dim: int, **__: Any) -> int | None:
    batch = _agree(set(batch_dims))
    return None if batch is None else batch + (dim <= batch)


def _sample_join(rng: random.Random) -> OpCase:
    shape, count = random_shape(rng), rng.randint(1, 3)
    bounded = tuple(i for i in range(count) if rng.random() < 0.7) or (0,)
    return OpCase((shape,) * count, {"dim": rng.randrange(len(shape))}, bounded)


_join_op("cat", torch.cat, _cat_batch, _sample_join, "join along a dimension")
_join_op("stack", torch.stack, _stack_batch, _sample_join, "join along a new dimension")


def _join(op: str, extra: int) -> Any:
    def lower(b: Lowering, tensors: Any, dim: int = 0, *, axis: int | None = None) -> Value:
        parts = [part for part in tensors if op == "stack" or b.shape(part) != (0,)]
        at = b.dim(parts[0], dim if axis is None else axis, extra=extra)
        return b.emit(op, *parts, dim=at)

    return lower


lowers(torch.cat, torch.concat, torch.concatenate, aten.cat.default)(_join("cat", 0))
lowers(torch.stack, aten.stack.default)(_join("stack", 1))


def _lower_stacked(least: int, dim: int) -> Any:
    """hstack and its kin: at least so many dimensions, joined along one of them."""

    def lower(b: Lowering, tensors: Any) -> Value:
        parts = []
        for part in tensors:
            shape = tuple(b.shape(part))
            if len(shape) == 0:
                shape = (1,)
            if len(shape) < least:
                ones = (1,) * (least - len(shape))
                # dstack: a vector becomes [1, n, 1], a matrix [m, n, 1].
                shape = (1, *shape, 1)[-3:] if least == 3 else (*ones, *shape)
            parts.append(reshape_to(b, part, shape))
        at = dim if len(b.shape(parts[0])) > dim else 0
        return b.emit("cat", *parts, dim=at)

    return lower


lowers(torch.hstack, aten.hstack.default)(_lower_stacked(1, 1))
lowers(torch.vstack, torch.row_stack, aten.vstack.default)(_lower_stacked(2, 0))
lowers(torch.dstack, aten.dstack.default)(_lower_stacked(3, 2))


@lowers(torch.column_stack, aten.column_stack.default)
def _(b: Lowering, tensors: Any) -> Value:
    parts = [reshape_to(b, part, (-1, 1)) if len(b.shape(part)) < 2 else part for part in tensors]
    return b.emit("cat", *parts, dim=1)
