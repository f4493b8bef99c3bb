"""Conversions between floating-point dtypes; moves between devices are no ops."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.symbolic import Symbolic
from boundgraph.ir.program import Value
from boundgraph.ops._contraction import expand_to
from boundgraph.ops._dtypes import from_torch, to_torch
from boundgraph.ops._spec import (
    Kind,
    Lowering,
    OpCase,
    OpSpec,
    Rounding,
    keep_batch,
    lowers,
    register,
)
from boundgraph.ops.selection import where

aten = torch.ops.aten


def _cast(x: Tensor, *, dtype: str) -> Tensor:
    return x.to(to_torch(dtype))


def _sample(rng: random.Random) -> OpCase:
    shape = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 3)))
    return OpCase((shape,), {"dtype": "f64"})


def _cast_interval(x: Interval, *, dtype: str) -> Interval:
    """Rounding to nearest keeps order, so casting the ends encloses every cast value."""
    return Interval(_cast(x.lower, dtype=dtype), _cast(x.upper, dtype=dtype))


def _cast_symbolic(x: Symbolic, *, dtype: str) -> Symbolic:
    return x.map(lambda c: _cast(c, dtype=dtype), lambda g: _cast(g, dtype=dtype))


register(
    OpSpec(
        "cast",
        Kind.AFFINE,
        _cast,
        interval=_cast_interval,
        symbolic=_cast_symbolic,
        magnitude=_cast,
        boundable=(0,),
        batch=keep_batch,
        rounding=Rounding(ulps=1),
        sample=_sample,
        summary="the same values in another floating-point dtype",
    )
)


def _convert(b: Lowering, x: Value, dtype: torch.dtype | None) -> Value:
    if dtype is None or from_torch(dtype) == x.type.dtype:
        return x
    name = from_torch(dtype)
    if x.type.dtype == "bool" and dtype.is_floating_point and b.depends(x):
        ones, zeros = (b.tensor(torch.tensor(n, dtype=dtype)) for n in (1.0, 0.0))
        return where(b, x, ones, zeros)
    if x.type.is_float and dtype.is_floating_point:
        return b.emit("cast", x, dtype=name)
    return b.emit(
        "call", x, target="Tensor.to", args=("#0", f"#dtype:{name}"), kwargs=(), output=()
    )


@lowers("Tensor.to", aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other)
@lowers(aten._to_copy.default)
def _(b: Lowering, input: Value, *args: Any, **kwargs: Any) -> Value:
    dtype = kwargs.get("dtype")
    for arg in (*args, kwargs.get("other")):
        if isinstance(arg, torch.dtype):
            dtype = arg
        elif isinstance(arg, Value):
            dtype = to_torch(arg.type.dtype)
    return _convert(b, input, dtype)


@lowers("Tensor.type_as", aten.type_as.default)
def _(b: Lowering, input: Value, other: Value) -> Value:
    return _convert(b, input, to_torch(other.type.dtype))


def _fixed(dtype: torch.dtype | None) -> Any:
    def lower(b: Lowering, input: Value, *_: Any, **__: Any) -> Value:
        return _convert(b, input, dtype)

    return lower


for _name, _dtype in {
    "float": torch.float32,
    "double": torch.float64,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "cpu": None,
    "cuda": None,
}.items():
    lowers(f"Tensor.{_name}")(_fixed(_dtype))


@lowers("Tensor.copy", aten.copy.default)
def _(b: Lowering, input: Value, src: Value, non_blocking: bool = False) -> Value:
    """What a tensor is after another was copied into it."""
    same = _convert(b, src, to_torch(input.type.dtype))
    return expand_to(b, same, b.shape(input))
