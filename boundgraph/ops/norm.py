"""Batch normalisation, with stored statistics or with those of the clean batch."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.ir.program import Value
from boundgraph.ops._dtypes import to_torch
from boundgraph.ops._kinds import affine
from boundgraph.ops._spec import Kind, Lowering, OpCase, OpSpec, Rounding, lowers, register

aten = torch.ops.aten


def _normalize(
    x: Tensor, mean: Tensor, var: Tensor, weight: Any = None, bias: Any = None, *, eps: float
) -> Tensor:
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)


def _linear_part(
    x: Tensor, mean: Tensor, var: Tensor, weight: Any = None, _: Any = None, *, eps: float
) -> Tensor:
    return F.batch_norm(x, torch.zeros_like(mean), var, weight, None, False, 0.0, eps)


def _magnitude(
    x: Tensor, mean: Tensor, var: Tensor, weight: Any = None, _: Any = None, *, eps: float
) -> Tensor:
    scale = None if weight is None else weight.abs()
    return F.batch_norm(x, torch.zeros_like(mean), var, scale, None, False, 0.0, eps)


def _offset(
    x: Tensor, mean: Tensor, var: Tensor, weight: Any = None, bias: Any = None, *, eps: float
) -> Tensor:
    """|mean·scale| + |bias|: the two are rounded apart and may cancel."""
    spread = mean.abs().expand_as(x.movedim(1, -1)).movedim(-1, 1)
    scale = None if weight is None else weight.abs()
    shift = None if bias is None else bias.abs()
    return F.batch_norm(spread, torch.zeros_like(mean), var, scale, shift, False, 0.0, eps)


def _per_channel(value: Tensor, like: Any) -> Tensor:
    """`[channels]` broadcast against coefficients of a value of shape `like`."""
    return value.reshape((-1,) + (1,) * (len(like) - 2))


def _adjoint(
    coeff: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Any = None,
    bias: Any = None,
    *,
    shapes: Any,
    target: Any,
    eps: float,
) -> Tensor:
    return coeff * _per_channel(_fold_scale(var, weight, eps=eps), target)


def _constant(
    coeff: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Any = None,
    bias: Any = None,
    *,
    dims: tuple[int, ...],
    eps: float,
) -> Tensor:
    shift = -mean * _fold_scale(var, weight, eps=eps)
    shift = shift if bias is None else shift + bias
    spatial = tuple(dim for dim in dims if dim > 2)
    rows = torch.matmul(coeff.sum(spatial) if spatial else coeff, shift)
    return rows.sum(1) if 1 in dims else rows


def _sample(rng: random.Random) -> OpCase:
    channels = rng.randint(1, 3)
    spatial = tuple(rng.randint(1, 3) for _ in range(rng.randint(0, 2)))
    count = rng.choice((2, 4))
    shapes = ((rng.randint(1, 3), channels, *spatial), *((channels,),) * count)
    return OpCase(shapes, {"eps": 1e-5}, low=-2.0, high=2.0, positive=(2,))


affine(
    "batch_norm",
    _normalize,
    adjoint=_adjoint,
    constant=_constant,
    linear=_linear_part,
    magnitude=_magnitude,
    rounding=Rounding(
        ulps=4, terms=lambda *_, **__: 8, offset=_offset, scales=True, transposed=lambda *_, **__: 1
    ),
    sample=_sample,
    summary="batch normalisation with given statistics",
)


def _training(x: Tensor, weight: Any = None, bias: Any = None, *, eps: float) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)


register(
    OpSpec(
        "batch_norm_train",
        Kind.COMPOSITE,
        _training,
        boundable=(),
        summary="batch normalisation in training mode; bounded through `clean-statistics`",
    )
)


def _batch_mean(x: Tensor, *, dims: tuple[int, ...]) -> Tensor:
    return torch.var_mean(x, dims, correction=0, keepdim=True)[1].reshape(-1)


def _batch_var(x: Tensor, *, dims: tuple[int, ...]) -> Tensor:
    # As batch normalisation itself computes it, so that compilers see one reduction.
    return torch.var_mean(x, dims, correction=0, keepdim=True)[0].reshape(-1)


def _unbiased(var: Tensor, *, sizes: tuple[int, ...]) -> Tensor:
    count = math.prod(sizes)
    return var * (count / (count - 1))


_STATISTICS = (
    ("batch_mean", _batch_mean, "mean per channel, of an unbounded batch"),
    ("batch_var", _batch_var, "biased variance per channel, of an unbounded batch"),
    ("unbiased_var", _unbiased, "a biased variance over that many elements, corrected"),
)
for _name, _rule, _text in _STATISTICS:
    register(OpSpec(_name, Kind.CONSTANT, _rule, boundable=(), summary=_text))


@lowers(F.batch_norm)
def _(
    b: Lowering,
    input: Value,
    running_mean: Value | None,
    running_var: Value | None,
    weight: Value | None = None,
    bias: Value | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Value:
    return _lower(b, input, running_mean, running_var, weight, bias, training, eps)


@lowers(aten.batch_norm.default)
def _(
    b: Lowering,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Value:
    return _lower(b, input, running_mean, running_var, weight, bias, training, eps)


def _lower(
    b: Lowering,
    input: Value,
    mean: Value | None,
    var: Value | None,
    weight: Value | None,
    bias: Value | None,
    training: bool,
    eps: float,
) -> Value:
    if (weight is None) != (bias is None):
        channels = b.shape(input)[1]
        assert isinstance(channels, int)
        neutral = torch.full((channels,), float(weight is None))
        own = b.tensor(neutral.to(to_torch(input.type.dtype)))
        weight, bias = (own, bias) if weight is None else (weight, own)
    scale = () if weight is None else (weight, bias)
    if training or mean is None or var is None:
        return b.emit("batch_norm_train", input, *scale, eps=eps)
    return b.emit("batch_norm", input, mean, var, *scale, eps=eps)


def _fold_scale(var: Tensor, weight: Any = None, *, eps: float) -> Tensor:
    inverse = (var + eps).rsqrt()
    return inverse if weight is None else inverse * weight


def _scale_rows(kernel: Tensor, scale: Tensor) -> Tensor:
    return (kernel.flatten(1) * scale.unsqueeze(1)).view_as(kernel)


_SCALES: tuple[tuple[str, Any, str], ...] = (
    ("batch_norm_scale", _fold_scale, "weight / sqrt(var + eps) per channel"),
    ("scale_rows", _scale_rows, "multiply each output channel of a kernel"),
)
for _name, _rule, _text in _SCALES:
    register(OpSpec(_name, Kind.CONSTANT, _rule, boundable=(), summary=_text))
