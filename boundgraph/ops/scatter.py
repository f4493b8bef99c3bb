"""Ops that put elements where fixed indices say: scatter and its sums and extremes."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval, as_interval
from boundgraph.ir.program import Value
from boundgraph.ops._compose import blank, plain
from boundgraph.ops._contraction import expand_to
from boundgraph.ops._dtypes import to_torch
from boundgraph.ops._kinds import affine
from boundgraph.ops._samples import random_shape
from boundgraph.ops._spec import Kind, Lowering, OpCase, OpSpec, Rounding, lowers, register
from boundgraph.ops.selection import where

aten = torch.ops.aten


def _undefined(flags: Tensor, *, dtype: str) -> Tensor:
    return torch.where(flags, torch.nan, 0.0).to(to_torch(dtype))


register(
    OpSpec(
        "undefined",
        Kind.CONSTANT,
        _undefined,
        boundable=(),
        summary="NaN where a write is ambiguous because an index occurs twice",
    )
)


def _sums(x: Tensor, index: Tensor, *, dim: int, size: int, rank: int) -> Tensor:
    # Zeros of the result's shape, which is not known while a program is emitted.
    first = torch.zeros_like(x.narrow(dim, 0, 1))
    return first.repeat_interleave(size, dim).scatter_add(dim, index, x)


def _for_each(index: Tensor, rows: Any, rank: int) -> Tensor:
    return index.unsqueeze(0).expand((rows, *(-1,) * rank))


def _sums_lifted(g: Tensor, index: Tensor, *, dim: int, size: int, rank: int) -> Tensor:
    index = _for_each(index, g.shape[0], rank)
    return _sums(g, index, dim=dim + 1, size=size, rank=rank + 1)


def _sums_adjoint(
    coeff: Tensor, index: Tensor, *, shapes: Any, target: Any, dim: int, size: int, rank: int
) -> Tensor:
    """Each element takes the coefficient of the sum that it is in."""
    # Samples may share coefficients, but need not share indices.
    wide = tuple(-1 if i == dim else entry for i, entry in enumerate(shapes[1]))
    spread = coeff.expand((-1, *wide))
    return spread.gather(dim + 1, _for_each(index, coeff.shape[0], rank))


def _sums_batch(batch_dims: Any, *_: Any, dim: int, **__: Any) -> int | None:
    return None if batch_dims[0] in (None, dim) else batch_dims[0]


def _sample_sums(rng: random.Random) -> OpCase:
    shape = random_shape(rng)
    dim, size = rng.randrange(len(shape)), rng.randint(1, 4)
    attrs = {"dim": dim, "size": size, "rank": len(shape)}
    return OpCase((shape, shape), attrs, indices=((1, size),))


affine(
    "scatter_add",
    _sums,
    lifted=_sums_lifted,
    adjoint=_sums_adjoint,
    batch=_sums_batch,
    rounding=Rounding(terms=lambda x, index, *, dim, **_: int(x.shape[dim]) + 1),
    sample=_sample_sums,
    summary="sums of the elements that share an index, others for each position",
)


def _extreme(x: Tensor, src: Tensor, index: Tensor, *, dim: int, reduce: str) -> Tensor:
    return x.scatter_reduce(dim, index, src, reduce, include_self=True)


def _extreme_interval(x: Any, src: Any, index: Tensor, *, dim: int, reduce: str) -> Interval:
    """The largest (smallest) of some elements rises in each of them."""
    x, src = as_interval(x), as_interval(src)
    return Interval(
        _extreme(x.lower, src.lower, index, dim=dim, reduce=reduce),
        _extreme(x.upper, src.upper, index, dim=dim, reduce=reduce),
    )


def _extreme_batch(batch_dims: Any, shapes: Any, out: Any, *, dim: int, reduce: str) -> int | None:
    found = {at for at in batch_dims[:2] if at is not None}
    return found.pop() if len(found) == 1 and dim not in found else None


def _sample_extreme(rng: random.Random) -> OpCase:
    shape = random_shape(rng)
    dim = rng.randrange(len(shape))
    attrs = {"dim": dim, "reduce": rng.choice(("amax", "amin"))}
    bounded = rng.choice(((0,), (1,), (0, 1)))
    return OpCase((shape, shape, shape), attrs, bounded=bounded, indices=((2, shape[dim]),))


register(
    OpSpec(
        "scatter_extreme",
        Kind.SELECTION,
        _extreme,
        interval=_extreme_interval,
        boundable=(0, 1),
        batch=_extreme_batch,
        sample=_sample_extreme,
        summary="largest or smallest of an element and of those sent to its place",
    )
)


def fixed(b: Lowering, index: Any) -> None:
    if b.depends(index):
        b.reject(
            "an index that depends on the input has no bound rule",
            help="use fixed indices, or a sum over all places with weights",
        )


def counted(b: Lowering, shape: Any, dim: int, index: Value) -> tuple[Value, Value]:
    """Which entry of `index` each place takes (−1: none), and whether it is named twice."""
    length = b.shape(index)[dim]
    with torch.device("cpu"):
        order = torch.arange(length).reshape((-1, *(1,) * (len(shape) - dim - 1)))  # type: ignore[arg-type]
    entries = expand_to(b, b.tensor(order), b.shape(index))
    nowhere = blank(b, shape, -1, torch.int64)
    winner = plain(b, "torch.scatter", nowhere, dim, index, entries)
    ones, zeros = blank(b, b.shape(index), 1, torch.int64), blank(b, shape, 0, torch.int64)
    count = plain(b, "torch.scatter_add", zeros, dim, index, ones)
    return winner, plain(b, "torch.gt", count, 1)


def _cut(b: Lowering, x: Value, shape: Any, dim: int) -> Value:
    """The part of a source that an index of that shape reads."""
    for at, (have, want) in enumerate(zip(b.shape(x), shape, strict=True)):
        if have != want:
            if not (isinstance(have, int) and isinstance(want, int)):
                return b.reject("a scatter of part of the batch mixes or drops samples")  # type: ignore[no-any-return]
            x = b.emit("slice", x, dim=at, start=0, stop=want, step=1)
    return x


def _filled_up(b: Lowering, x: Value, shape: Any, dim: int) -> Value:
    """Zeros behind the elements along all other dimensions, up to a shape."""
    pads: list[int] = []
    for at, (have, want) in reversed(list(enumerate(zip(b.shape(x), shape, strict=True)))):
        short = 0 if at == dim or have == want else want - have
        if not isinstance(short, int):
            return b.reject("a scatter into part of the batch mixes or drops samples")  # type: ignore[no-any-return]
        pads += [0, short]
    if not any(pads):
        return x
    while len(pads) > 2 and not any(pads[-2:]):
        del pads[-2:]
    return b.emit("pad", x, pads=tuple(pads), mode="constant", value=0.0)


def _along(b: Lowering, x: Value, dim: int, index: Value) -> int:
    fixed(b, index)
    at = b.dim(x, dim)
    if not (isinstance(b.shape(x)[at], int) and isinstance(b.shape(index)[at], int)):
        b.reject("a scatter along the batch dimension mixes samples")
    return at


def settled(b: Lowering, twice: Value, result: Value) -> Value:
    """NaN at places that two different elements are sent to: torch takes either."""
    unknown = b.emit("undefined", twice, dtype=result.type.dtype)
    return where(b, twice, unknown, result)


def _scatter(b: Lowering, x: Value, dim: int, index: Value, src: Any) -> Value:
    at, shape = _along(b, x, dim, index), b.shape(x)
    if not isinstance(src, Value):
        flags = blank(b, shape, False, torch.bool)
        ones = blank(b, b.shape(index), True, torch.bool)
        return where(b, plain(b, "torch.scatter", flags, at, index, ones), src, x)
    winner, twice = counted(b, shape, at, index)
    source = _filled_up(b, _cut(b, src, b.shape(index), at), shape, at)
    places = plain(b, "torch.clamp", winner, 0)
    picked = b.emit("gather", source, places, dim=at, rank=len(shape))
    return settled(b, twice, where(b, plain(b, "torch.ge", winner, 0), picked, x))


def _scatter_add(b: Lowering, x: Value, dim: int, index: Value, src: Value) -> Value:
    at, shape = _along(b, x, dim, index), b.shape(x)
    source = _cut(b, src, b.shape(index), at)
    sums = b.emit("scatter_add", source, index, dim=at, size=shape[at], rank=len(shape))
    return b.emit("add", *b.broadcast(x, _filled_up(b, sums, shape, at)))


def _reached(b: Lowering, x: Value, at: int, index: Value) -> Value:
    """How many entries of the index name each place."""
    ones = blank(b, b.shape(index), 1, torch.int64)
    zeros = blank(b, b.shape(x), 0, torch.int64)
    return plain(b, "torch.scatter_add", zeros, at, index, ones)


def _scatter_reduce(
    b: Lowering,
    input: Value,
    dim: int,
    index: Value,
    src: Value,
    reduce: str,
    *,
    include_self: bool = True,
) -> Value:
    if reduce == "prod":
        return b.reject("scatter_reduce with 'prod' has no bound rule", help="multiply by hand")
    at = _along(b, input, dim, index)
    count = _reached(b, input, at, index)
    x = input
    if not include_self:
        start = {"amax": -torch.inf, "amin": torch.inf}.get(reduce, 0.0)
        if start:
            return b.reject(
                f"scatter_reduce with {reduce!r} and include_self=False has no bound rule",
                help="start from the first elements, with include_self=True",
            )
        x = where(b, plain(b, "torch.gt", count, 0), 0.0, input)
    if reduce in ("amax", "amin"):
        source = _cut(b, src, b.shape(index), at)
        return b.emit("scatter_extreme", x, source, index, dim=at, reduce=reduce)
    total = _scatter_add(b, x, dim, index, src)
    if reduce == "sum":
        return total
    many = plain(b, "torch.add", count, 1) if include_self else plain(b, "torch.clamp", count, 1)
    numbers = plain(b, "Tensor.to", many, to_torch(x.type.dtype))
    return b.emit("div", *b.broadcast(total, numbers))


@lowers(torch.scatter, "Tensor.scatter", aten.scatter.src, aten.scatter.value)
@lowers(aten.scatter.reduce, aten.scatter.value_reduce)
def _(
    b: Lowering,
    input: Value,
    dim: int,
    index: Value,
    src: Any = None,
    *,
    value: Any = None,
    reduce: str | None = None,
) -> Value:
    given = value if src is None else src
    if reduce is None:
        return _scatter(b, input, dim, index, given)
    if reduce != "add" or not isinstance(given, Value):
        return b.reject(f"scatter with reduce={reduce!r} has no bound rule")
    return _scatter_add(b, input, dim, index, given)


@lowers(torch.scatter_add, "Tensor.scatter_add", aten.scatter_add.default)
def _(b: Lowering, input: Value, dim: int, index: Value, src: Value) -> Value:
    return _scatter_add(b, input, dim, index, src)


lowers(torch.scatter_reduce, "Tensor.scatter_reduce", aten.scatter_reduce.two)(_scatter_reduce)
