"""Ops that give the same elements another shape: reshape, permute, expand."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch import Tensor

from boundgraph.ir.program import Value
from boundgraph.ir.types import Dim, Shape, numel
from boundgraph.ops._kinds import structural
from boundgraph.ops._samples import random_shape
from boundgraph.ops._spec import (
    Lowering,
    OpCase,
    lowers,
)

aten = torch.ops.aten


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
    shape = random_shape(rng)
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
    shape = random_shape(rng, 2)
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
lowers(aten.swapaxes.default, aten.swapdims.default)(_transpose)


@lowers(torch.t, "Tensor.t", aten.t.default)
def _(b: Lowering, input: Value) -> Value:
    return _transpose(b, input, 0, 1) if len(b.shape(input)) == 2 else input


@lowers("Tensor.T", aten.numpy_T.default)
def _(b: Lowering, input: Value) -> Value:
    order = tuple(reversed(range(len(b.shape(input)))))
    return b.emit("permute", input, dims=order) if len(order) > 1 else input


@lowers("Tensor.mT", "Tensor.mH", aten.mT.default, aten.mH.default)
@lowers(torch.adjoint, "Tensor.adjoint", aten.adjoint.default)
def _(b: Lowering, input: Value) -> Value:
    if input.type.dtype.startswith("c"):
        return b.reject("complex tensors have no bound rule")
    return _transpose(b, input, -2, -1)


@lowers(torch.ravel, "Tensor.ravel", aten.ravel.default)
def _(b: Lowering, input: Value) -> Value:
    return reshape_to(b, input, (-1,))


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
