"""Padding in every mode."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.ir.program import Value
from boundgraph.ops._kinds import affine
from boundgraph.ops._spec import (
    Lowering,
    OpCase,
    Rounding,
    lowers,
)

aten = torch.ops.aten


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
    # Offsets sum all coefficients and take those of the operand out again.
    rounding=Rounding(offset=lambda x, *, pads, mode, value: abs(value)),
    summary="constant, reflect, replicate or circular padding of trailing dimensions",
)


def _cropped(b: Lowering, x: Value, pads: tuple[int, ...]) -> Value:
    """Negative padding takes elements away."""
    last = len(b.shape(x)) - 1
    for i in range(len(pads) // 2):
        before, after = max(-pads[2 * i], 0), max(-pads[2 * i + 1], 0)
        size = b.shape(x)[last - i]
        if before or after:
            if not isinstance(size, int):
                return b.reject("cropping the batch dimension drops samples")
            x = b.emit("slice", x, dim=last - i, start=before, stop=size - after, step=1)
    return x


@lowers(F.pad, aten.pad.default)
def _(
    b: Lowering, input: Value, pad: Any, mode: str = "constant", value: float | None = None
) -> Value:
    x = _cropped(b, input, tuple(pad))
    pads = tuple(max(entry, 0) for entry in pad)
    return b.emit("pad", x, pads=pads, mode=mode, value=float(value or 0.0)) if any(pads) else x


@lowers(aten.constant_pad_nd.default)
def _(b: Lowering, input: Value, pad: Any, value: float = 0.0) -> Value:
    x = _cropped(b, input, tuple(pad))
    pads = tuple(max(entry, 0) for entry in pad)
    return b.emit("pad", x, pads=pads, mode="constant", value=float(value)) if any(pads) else x
