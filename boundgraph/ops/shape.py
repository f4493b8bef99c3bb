"""Ops that move elements: reshape, permute, slice, cat, stack, pad, expand."""

from __future__ import annotations

import math
import operator
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.domains.interval import Interval, as_interval
from boundgraph.domains.linear_form import LinearForm
from boundgraph.domains.symbolic import Symbolic
from boundgraph.ir.program import Value
from boundgraph.ir.types import Dim, Shape, numel
from boundgraph.ops._kinds import affine, structural
from boundgraph.ops._spec import (
    Kind,
    Lowering,
    OpCase,
    OpSpec,
    Rounding,
    lowers,
    register,
)

aten = torch.ops.aten


def _blank(coeff: Tensor, shape: Any) -> Tensor:
    """Zero coefficients of an operand of that shape, for as many rows as `coeff`."""
    return coeff.new_zeros((coeff.shape[0], *shape))


def _random_shape(rng: random.Random, least: int = 1, most: int = 3) -> tuple[int, ...]:
    return tuple(rng.randint(1, 4) for _ in range(rng.randint(least, most)))


def _reshape_batch(batch_dims: Any, shapes: Any, out: Shape, **_: Any) -> int | None:
    """Samples stay apart when as many elements precede the batch dimension as before.

    Then the row-major index splits at the same place, so each sample's elements stay
    together and in the same position among the samples.
    """
    dim = batch_dims[0]
    if dim is None:
        return None
    before = numel(shapes[0][:dim])
    for position, entry in enumerate(out):
        if entry == shapes[0][dim] and numel(out[:position]) == before:
            return position
    return None


def _sample_reshape(rng: random.Random) -> OpCase:
    shape = _random_shape(rng)
    flat = math.prod(shape[1:])
    return OpCase((shape,), {"shape": rng.choice(((shape[0], flat), (shape[0], 1, flat)))})


structural(
    "reshape",
    lambda x, *, shape: x.reshape(shape),
    lifted=lambda g, *, shape: g.reshape((g.shape[0], *shape)),
    adjoint=lambda coeff, *, shapes, target, shape: coeff.reshape((coeff.shape[0], *shapes[0])),
    batch=_reshape_batch,
    sample=_sample_reshape,
    summary="new shape, same elements in order",
)


def _permute_batch(batch_dims: Any, *_: Any, dims: tuple[int, ...], **__: Any) -> int | None:
    return None if batch_dims[0] is None else dims.index(batch_dims[0])


def _sample_permute(rng: random.Random) -> OpCase:
    shape = _random_shape(rng, 2)
    dims = list(range(len(shape)))
    rng.shuffle(dims)
    return OpCase((shape,), {"dims": tuple(dims)})


structural(
    "permute",
    lambda x, *, dims: x.permute(dims),
    lifted=lambda g, *, dims: g.permute((0, *(dim + 1 for dim in dims))),
    adjoint=lambda coeff, *, shapes, target, dims: coeff.permute(
        (0, *(dims.index(dim) + 1 for dim in range(len(dims))))
    ),
    batch=_permute_batch,
    sample=_sample_permute,
    summary="reorder dimensions",
)


def _slice(x: Tensor, *, dim: int, start: int, stop: int, step: int) -> Tensor:
    index = (slice(None),) * dim + (slice(start, stop, step),)
    return x[index]


def _slice_batch(batch_dims: Any, *_: Any, dim: int, **__: Any) -> int | None:
    return None if batch_dims[0] in (None, dim) else batch_dims[0]


def _sample_slice(rng: random.Random) -> OpCase:
    shape = tuple(rng.randint(2, 5) for _ in range(rng.randint(1, 3)))
    dim = rng.randrange(len(shape))
    start = rng.randrange(shape[dim])
    stop = rng.randint(start + 1, shape[dim])
    return OpCase((shape,), {"dim": dim, "start": start, "stop": stop, "step": rng.randint(1, 2)})


structural(
    "slice",
    _slice,
    lifted=lambda g, *, dim, **attrs: _slice(g, dim=dim + 1, **attrs),
    adjoint=lambda coeff, *, shapes, target, dim, start, stop, step: torch.slice_scatter(
        _blank(coeff, shapes[0]), coeff, dim + 1, start, stop, step
    ),
    batch=_slice_batch,
    sample=_sample_slice,
    summary="start:stop:step along one dimension",
)


def _select_batch(batch_dims: Any, *_: Any, dim: int, **__: Any) -> int | None:
    batch = batch_dims[0]
    if batch in (None, dim):
        return None
    return batch if batch < dim else batch - 1


structural(
    "select",
    lambda x, *, dim, index: x.select(dim, index),
    lifted=lambda g, *, dim, index: g.select(dim + 1, index),
    adjoint=lambda coeff, *, shapes, target, dim, index: torch.select_scatter(
        _blank(coeff, shapes[0]), coeff, dim + 1, index
    ),
    batch=_select_batch,
    sample=lambda rng: OpCase((_random_shape(rng, 1),), {"dim": 0, "index": 0}),
    summary="one index along one dimension, which goes",
)


def _expand_batch(batch_dims: Any, shapes: Any, out: Shape, **_: Any) -> int | None:
    dim = batch_dims[0]
    return dim if dim is not None and out[dim] == shapes[0][dim] else None


def _expand_adjoint(coeff: Tensor, *, shapes: Any, target: Any, shape: Any) -> Tensor:
    repeated = tuple(
        dim + 1
        for dim, size in enumerate(shapes[0])
        # A dynamic size is no int, and a proxy when traced; it stands for a repetition.
        if isinstance(size, int)
        and size == 1
        and not (isinstance(target[dim], int) and target[dim] == 1)
    )
    return coeff.sum(repeated, keepdim=True) if repeated else coeff


structural(
    "expand",
    lambda x, *, shape: x.expand(shape),
    lifted=lambda g, *, shape: g.expand((-1, *shape)),
    adjoint=_expand_adjoint,
    batch=_expand_batch,
    sample=lambda rng: OpCase(((rng.randint(1, 3), 1),), {"shape": (-1, rng.randint(1, 4))}),
    summary="repeat along dimensions of size 1",
)


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
        coeff = _part(name, form.coeff, operand, shapes, dim)
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
    shape, count = _random_shape(rng), rng.randint(1, 3)
    bounded = tuple(i for i in range(count) if rng.random() < 0.7) or (0,)
    return OpCase((shape,) * count, {"dim": rng.randrange(len(shape))}, bounded)


_join_op("cat", torch.cat, _cat_batch, _sample_join, "join along a dimension")
_join_op("stack", torch.stack, _stack_batch, _sample_join, "join along a new dimension")


def _pad_batch(batch_dims: Any, shapes: Any, *_: Any, pads: tuple[int, ...], **__: Any) -> Any:
    first_padded = len(shapes[0]) - len(pads) // 2
    dim = batch_dims[0]
    return dim if dim is not None and dim < first_padded else None


def _sample_pad(rng: random.Random) -> OpCase:
    mode = rng.choice(("constant", "reflect", "replicate", "circular"))
    pads = tuple(rng.randint(0, 2) for _ in range(4))
    attrs = {"pads": pads, "mode": mode, "value": 0.7 if mode == "constant" else 0.0}
    return OpCase(((rng.randint(1, 2), 2, 4, 4),), attrs)


def _pad(x: Tensor, *, pads: tuple[int, ...], mode: str, value: float) -> Tensor:
    return F.pad(x, pads, mode, value) if mode == "constant" else F.pad(x, pads, mode)


def _pad_linear(x: Tensor, *, pads: tuple[int, ...], mode: str, value: float) -> Tensor:
    return _pad(x, pads=pads, mode=mode, value=0.0)


def _pad_constant(
    coeff: Tensor, *, dims: tuple[int, ...], pads: tuple[int, ...], mode: str, value: float
) -> Tensor:
    """Coefficients that meet the padding value: all, less those that meet the operand."""
    cropped = F.pad(coeff, tuple(-entry for entry in pads))
    return (coeff.sum(dims) - cropped.sum(dims)) * value


def _pad_adjoint(
    coeff: Tensor, *, shapes: Any, target: Any, pads: tuple[int, ...], mode: str, value: float
) -> Tensor:
    """Fold the coefficients of padded copies back onto the elements they copy."""
    if mode == "constant":
        return F.pad(coeff, tuple(-entry for entry in pads))
    for i in range(len(pads) // 2):
        coeff = _fold_back(coeff, -(i + 1), pads[2 * i], pads[2 * i + 1], mode)
    return coeff


def _fold_back(coeff: Tensor, dim: int, before: int, after: int, mode: str) -> Tensor:
    size = coeff.shape[dim] - before - after
    middle = coeff.narrow(dim, before, size)
    if before:
        head = coeff.narrow(dim, 0, before)
        if mode == "reflect":
            middle = _add_at(middle, head.flip(dim), dim, 1, before, size)
        elif mode == "replicate":
            middle = _add_at(middle, head.sum(dim, keepdim=True), dim, 0, 1, size)
        else:
            middle = _add_at(middle, head, dim, size - before, before, size)
    if after:
        tail = coeff.narrow(dim, before + size, after)
        if mode == "reflect":
            middle = _add_at(middle, tail.flip(dim), dim, size - 1 - after, after, size)
        elif mode == "replicate":
            middle = _add_at(middle, tail.sum(dim, keepdim=True), dim, size - 1, 1, size)
        else:
            middle = _add_at(middle, tail, dim, 0, after, size)
    return middle


def _add_at(target: Tensor, part: Tensor, dim: int, start: Any, length: int, size: Any) -> Tensor:
    """`target` plus `part` at `start` along a trailing dimension (given from the end)."""
    around = (0, 0) * (-dim - 1) + (start, size - start - length)
    return target + F.pad(part, around)


affine(
    "pad",
    _pad,
    adjoint=_pad_adjoint,
    constant=_pad_constant,
    linear=_pad_linear,
    batch=_pad_batch,
    sample=_sample_pad,
    rounding=Rounding(),
    summary="constant, reflect, replicate or circular padding of trailing dimensions",
)


def _resolve(b: Lowering, x: Value, shape: tuple[Any, ...]) -> Shape:
    """A target shape with −1 replaced by what is left."""
    if shape.count(-1) == 0:
        return shape
    known = numel(tuple(entry for entry in shape if entry != -1))
    total = numel(b.shape(x))
    missing: Any
    if isinstance(total, Dim) and isinstance(known, Dim):
        missing, rest = divmod(total.coeff, known.coeff)
        if rest or known * missing != total:
            raise ValueError(f"cannot infer -1 in {shape} for {b.shape(x)}")
    else:
        missing = total // known  # type: ignore[operator]
    return tuple(missing if entry == -1 else entry for entry in shape)


def reshape_to(b: Lowering, x: Value, shape: tuple[Any, ...]) -> Value:
    target = _resolve(b, x, shape)
    return x if target == b.shape(x) else b.emit("reshape", x, shape=target)


def _sizes(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """`f(x, 1, 2)` and `f(x, (1, 2))` alike."""
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], tuple | list) else args


@lowers(torch.reshape, "Tensor.reshape", "Tensor.view", aten.reshape.default, aten.view.default)
@lowers(aten._unsafe_view.default)
def _(b: Lowering, input: Value, *shape: Any, **kwargs: Any) -> Value:
    return reshape_to(b, input, _sizes(shape or (kwargs.get("shape") or kwargs["size"],)))


@lowers("Tensor.view_as", "Tensor.reshape_as")
def _(b: Lowering, input: Value, other: Value) -> Value:
    return reshape_to(b, input, b.shape(other))


@lowers(torch.flatten, "Tensor.flatten", aten.flatten.using_ints)
def _(b: Lowering, input: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    shape = b.shape(input)
    if not shape:
        return reshape_to(b, input, (1,))
    start, end = b.dim(input, start_dim), b.dim(input, end_dim)
    return reshape_to(b, input, (*shape[:start], numel(shape[start : end + 1]), *shape[end + 1 :]))


@lowers(torch.unflatten, "Tensor.unflatten", aten.unflatten.int)
def _(b: Lowering, input: Value, dim: int, sizes: Any) -> Value:
    shape, at = b.shape(input), b.dim(input, dim)
    sizes = tuple(sizes)
    known = numel(tuple(entry for entry in sizes if entry != -1))
    size: Any = shape[at]
    filled = tuple(size // known if entry == -1 else entry for entry in sizes)
    return reshape_to(b, input, (*shape[:at], *filled, *shape[at + 1 :]))


@lowers(torch.squeeze, "Tensor.squeeze", aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def _(b: Lowering, input: Value, dim: Any = None) -> Value:
    shape = b.shape(input)
    if dim is None:
        chosen = set(range(len(shape)))
    else:
        chosen = {b.dim(input, d) for d in (dim if isinstance(dim, tuple | list) else (dim,))}
    kept = tuple(s for i, s in enumerate(shape) if not (i in chosen and s == 1))
    return reshape_to(b, input, kept)


@lowers(torch.unsqueeze, "Tensor.unsqueeze", aten.unsqueeze.default)
def _(b: Lowering, input: Value, dim: int) -> Value:
    shape, at = b.shape(input), b.dim(input, dim, extra=1)
    return b.emit("reshape", input, shape=(*shape[:at], 1, *shape[at:]))


@lowers(torch.permute, "Tensor.permute", aten.permute.default)
def _(b: Lowering, input: Value, *dims: Any, **kwargs: Any) -> Value:
    order = tuple(b.dim(input, dim) for dim in _sizes(dims or (kwargs["dims"],)))
    return input if order == tuple(range(len(order))) else b.emit("permute", input, dims=order)


def _transpose(b: Lowering, input: Value, dim0: int, dim1: int) -> Value:
    order = list(range(len(b.shape(input))))
    first, second = b.dim(input, dim0), b.dim(input, dim1)
    order[first], order[second] = order[second], order[first]
    return input if first == second else b.emit("permute", input, dims=tuple(order))


lowers(torch.transpose, "Tensor.transpose", torch.swapaxes, torch.swapdims)(_transpose)
lowers("Tensor.swapaxes", "Tensor.swapdims", aten.transpose.int)(_transpose)


@lowers(torch.t, "Tensor.t", aten.t.default, aten.numpy_T.default)
def _(b: Lowering, input: Value) -> Value:
    return _transpose(b, input, 0, 1) if len(b.shape(input)) == 2 else input


def take_slice(b: Lowering, x: Value, dim: int, start: Any, stop: Any, step: Any) -> Value:
    size = b.shape(x)[dim]
    step = 1 if step is None else step
    full = start in (None, 0) and (stop is None or stop == size or _beyond(stop, size))
    if full and step == 1:
        return x
    if not isinstance(size, int):
        return b.reject(f"a slice of the dynamic dimension {dim} mixes or drops samples")
    first, last, step = slice(start, stop, step).indices(size)
    return b.emit("slice", x, dim=dim, start=first, stop=last, step=step)


def _beyond(stop: Any, size: Any) -> bool:
    """The 'to the end' sentinel of exported graphs, or a stop past a static size."""
    return isinstance(stop, int) and (stop >= 2**62 or (isinstance(size, int) and stop >= size))


@lowers(aten.slice.Tensor)
def _(
    b: Lowering, input: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    return take_slice(b, input, b.dim(input, dim), start, end, step)


@lowers(torch.narrow, "Tensor.narrow", aten.narrow.default)
def _(b: Lowering, input: Value, dim: int, start: int, length: int) -> Value:
    return take_slice(b, input, b.dim(input, dim), start, start + length, 1)


@lowers(torch.select, "Tensor.select", aten.select.int)
def _(b: Lowering, input: Value, dim: int, index: int) -> Value:
    at = b.dim(input, dim)
    size = b.shape(input)[at]
    if isinstance(size, int):
        index %= size
    return b.emit("select", input, dim=at, index=index)


def index_value(b: Lowering, x: Value, index: Any) -> Value:
    """`x[index]` for ints, slices, None and Ellipsis."""
    items = list(index) if isinstance(index, tuple) else [index]
    consumed = sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (len(b.shape(x)) - consumed)
    dim = 0
    for item in items:
        if item is None:
            x, dim = reshape_to(b, x, (*b.shape(x)[:dim], 1, *b.shape(x)[dim:])), dim + 1
        elif isinstance(item, slice):
            x, dim = take_slice(b, x, dim, item.start, item.stop, item.step), dim + 1
        elif isinstance(item, int) and not isinstance(item, bool):
            size = b.shape(x)[dim]
            where = item % size if isinstance(size, int) else item
            x = b.emit("select", x, dim=dim, index=where)
        else:
            return b.reject(f"indexing with {type(item).__name__} has no bound rule")
    return x


@lowers(operator.getitem)
def _(b: Lowering, input: Value, index: Any) -> Value:
    return index_value(b, input, index)


def _expand(b: Lowering, input: Value, *sizes: Any, **_: Any) -> Value:
    target = list(_sizes(sizes))
    shape = b.shape(input)
    lead = len(target) - len(shape)
    for i, entry in enumerate(target):
        if entry == -1:
            target[i] = shape[i - lead]
    padded = reshape_to(b, input, (1,) * lead + tuple(shape))
    return (
        padded
        if tuple(target) == b.shape(padded)
        else b.emit("expand", padded, shape=tuple(target))
    )


lowers("Tensor.expand", aten.expand.default)(_expand)


@lowers("Tensor.expand_as", aten.expand_as.default)
def _(b: Lowering, input: Value, other: Value) -> Value:
    return _expand(b, input, *b.shape(other))


def _join(op: str, extra: int) -> Any:
    def lower(b: Lowering, tensors: Any, dim: int = 0, *, axis: int | None = None) -> Value:
        parts = [part for part in tensors if op == "stack" or b.shape(part) != (0,)]
        at = b.dim(parts[0], dim if axis is None else axis, extra=extra)
        return b.emit(op, *parts, dim=at)

    return lower


lowers(torch.cat, torch.concat, torch.concatenate, aten.cat.default)(_join("cat", 0))
lowers(torch.stack, aten.stack.default)(_join("stack", 1))


@lowers(F.pad, aten.pad.default)
def _(
    b: Lowering, input: Value, pad: Any, mode: str = "constant", value: float | None = None
) -> Value:
    pads = tuple(pad)
    if any(entry < 0 for entry in pads):
        return b.reject("negative padding (cropping) has no bound rule", help="slice instead")
    if not any(pads):
        return input
    return b.emit("pad", input, pads=pads, mode=mode, value=float(value or 0.0))


@lowers(aten.constant_pad_nd.default)
def _(b: Lowering, input: Value, pad: Any, value: float = 0.0) -> Value:
    return b.emit("pad", input, pads=tuple(pad), mode="constant", value=float(value))


def _pieces(b: Lowering, x: Value, sizes: list[Any], dim: int) -> tuple[Value, ...]:
    pieces, start = [], 0
    for length in sizes:
        pieces.append(take_slice(b, x, dim, start, start + length, 1))
        start += length
    return tuple(pieces)


@lowers(torch.chunk, "Tensor.chunk", aten.chunk.default)
def _(b: Lowering, input: Value, chunks: int, dim: int = 0) -> Any:
    at = b.dim(input, dim)
    size = b.shape(input)[at]
    if not isinstance(size, int):
        return (b.reject(f"chunk along the dynamic dimension {at} mixes samples"),) * chunks
    length = -(-size // chunks)
    return _pieces(b, input, [min(length, size - i) for i in range(0, size, length)], at)


@lowers(torch.split, "Tensor.split", aten.split.Tensor, aten.split_with_sizes.default)
@lowers(aten.split.sizes)
def _(b: Lowering, input: Value, split_size_or_sections: Any, dim: int = 0) -> Any:
    at = b.dim(input, dim)
    size = b.shape(input)[at]
    if not isinstance(size, int):
        return (b.reject(f"split along the dynamic dimension {at} mixes samples"),)
    if isinstance(split_size_or_sections, int):
        length = split_size_or_sections
        return _pieces(b, input, [min(length, size - i) for i in range(0, size, length)], at)
    return _pieces(b, input, list(split_size_or_sections), at)


@lowers(torch.unbind, "Tensor.unbind", aten.unbind.int)
def _(b: Lowering, input: Value, dim: int = 0) -> Any:
    at = b.dim(input, dim)
    size = b.shape(input)[at]
    if not isinstance(size, int):
        return (b.reject(f"unbind along the dynamic dimension {at} mixes samples"),)
    return tuple(b.emit("select", input, dim=at, index=i) for i in range(size))
