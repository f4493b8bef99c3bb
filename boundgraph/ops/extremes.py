"""Ops that pick elements by size: amax, amin, sorted values, running maxima."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm
from boundgraph.ir.program import Value
from boundgraph.ops._dtypes import to_torch
from boundgraph.ops._samples import random_shape
from boundgraph.ops._spec import Kind, Lowering, OpCase, OpSpec, Rule, lowering, lowers, register
from boundgraph.ops.views import reshape_to

aten = torch.ops.aten


def _batch(batch_dims: Any, *_: Any, dim: int, keepdim: bool, **__: Any) -> int | None:
    batch = batch_dims[0]
    if batch in (None, dim):
        return None
    return batch if keepdim or batch < dim else batch - 1


def _stays(batch_dims: Any, *_: Any, dim: int, **__: Any) -> int | None:
    return None if batch_dims[0] == dim else batch_dims[0]


def _first(value: Tensor, dim: int) -> Tensor:
    """1 at the (first) largest element along a dimension, 0 elsewhere."""
    at = value.argmax(dim, keepdim=True)
    return torch.zeros_like(value).scatter(dim, at, torch.ones_like(value))


def _largest_backward(
    form: LinearForm,
    pre: Interval,
    *,
    operand: int,
    carry: bool,
    sample_dims: tuple[int, ...],
    dim: int,
    keepdim: bool,
    **_: Any,
) -> LinearForm:
    """max x is at least the element with the largest lower end, and at most the largest upper end.

    Where that element's lower end is above all other upper ends, it is the largest itself.
    """
    own = _first(pre.lower, dim)
    others = pre.upper.masked_fill(own > 0, -math.inf).amax(dim, keepdim=True)
    decided = (pre.lower.amax(dim, keepdim=True) >= others).to(own.dtype)
    form_at = form.coeff if keepdim else form.coeff.unsqueeze(dim + 1)
    positive, negative = form_at.clamp(min=0.0), form_at.clamp(max=0.0)
    coeff = (positive + negative * decided) * own
    if not carry:
        return LinearForm(coeff)
    constant = negative * ((1.0 - decided) * pre.upper.amax(dim, keepdim=True))
    constant = constant if keepdim else constant.squeeze(dim + 1)
    return LinearForm(coeff, form.shifted(constant.sum(sample_dims) if sample_dims else constant))


def _smallest_backward(form: LinearForm, pre: Interval, **attrs: Any) -> LinearForm:
    """min x = −max −x."""
    turned = _largest_backward(
        LinearForm(-form.coeff, form.offset), Interval(-pre.upper, -pre.lower), **attrs
    )
    return LinearForm(-turned.coeff, turned.offset)


def _sample(rng: random.Random) -> OpCase:
    shape = random_shape(rng)
    return OpCase((shape,), {"dim": rng.randrange(len(shape)), "keepdim": rng.random() < 0.5})


def _sample_sort(rng: random.Random) -> OpCase:
    shape = random_shape(rng)
    attrs = {"dim": rng.randrange(len(shape)), "descending": rng.random() < 0.5}
    return OpCase((shape,), attrs)


def _sample_scan(rng: random.Random) -> OpCase:
    shape = random_shape(rng)
    return OpCase((shape,), {"dim": rng.randrange(len(shape))})


def _selection(
    name: str, concrete: Rule, batch: Any, sample: Any, summary: str, backward: Rule | None = None
) -> None:
    """An op that is increasing in every element."""
    register(
        OpSpec(
            name,
            Kind.SELECTION,
            concrete,
            interval=lambda x, **attrs: Interval(
                concrete(x.lower, **attrs), concrete(x.upper, **attrs)
            ),
            boundable=(0,),
            batch=batch,
            backward=backward,
            sample=sample,
            summary=summary,
        )
    )


_selection(
    "amax",
    lambda x, *, dim, keepdim: x.amax(dim, keepdim),
    _batch,
    _sample,
    "largest along one dimension",
    _largest_backward,
)
_selection(
    "amin",
    lambda x, *, dim, keepdim: x.amin(dim, keepdim),
    _batch,
    _sample,
    "smallest along one dimension",
    _smallest_backward,
)
_selection(
    "sort_values",
    lambda x, *, dim, descending: x.sort(dim, descending).values,
    _stays,
    _sample_sort,
    "values in order along one dimension",
)
_selection(
    "cummax_values",
    lambda x, *, dim: x.cummax(dim).values,
    _stays,
    _sample_scan,
    "largest so far along one dimension",
)
_selection(
    "cummin_values",
    lambda x, *, dim: x.cummin(dim).values,
    _stays,
    _sample_scan,
    "smallest so far along one dimension",
)


def _indices(b: Lowering, x: Value, function: str, *args: Any, **options: Any) -> Value:
    """The second result of such a function: fine for a fixed tensor, refused for a bounded one."""
    return b.emit(
        "call",
        x,
        target=f"torch.{function}",
        args=("#0", *args),
        kwargs=tuple(options.items()),
        output=(1,),
    )


def _reduced(b: Lowering, op: str, x: Value, dims: Any, keepdim: bool) -> Value:
    rank = len(b.shape(x))
    chosen = range(rank) if dims in (None, (), []) else _sequence(dims)
    for dim in sorted({b.dim(x, d) for d in chosen}, reverse=True):
        x = b.emit(op, x, dim=dim, keepdim=keepdim)
    return x


def _sequence(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _lower_extreme(op: str) -> Any:
    def lower(
        b: Lowering, input: Value, dim: Any = None, keepdim: bool = False, *, axis: Any = None
    ) -> Value:
        return _reduced(b, op, input, axis if dim is None else dim, keepdim)

    return lower


def _lower_with_indices(op: str, binary: Any) -> Any:
    """`max(x)`, `max(x, dim)` with indices, and `max(x, y)`."""

    def lower(
        b: Lowering, input: Value, dim: Any = None, keepdim: bool = False, *, other: Any = None
    ) -> Any:
        second = other if other is not None else dim
        if b.is_tensor(second):
            pairwise = lowering(binary)
            if pairwise is None:
                return b.reject(f"the {op} of two tensors has no bound rule")
            return pairwise(b, input, second)
        if dim is None:
            return _reduced(b, op, input, None, False)
        values = _reduced(b, op, input, dim, keepdim)
        return values, _indices(b, input, op[1:], b.dim(input, dim), keepdim)

    return lower


lowers(torch.amax, "Tensor.amax", aten.amax.default)(_lower_extreme("amax"))
lowers(torch.amin, "Tensor.amin", aten.amin.default)(_lower_extreme("amin"))
lowers(torch.max, "Tensor.max", aten.max.default, aten.max.dim, aten.max.other)(
    _lower_with_indices("amax", torch.maximum)
)
lowers(torch.min, "Tensor.min", aten.min.default, aten.min.dim, aten.min.other)(
    _lower_with_indices("amin", torch.minimum)
)


@lowers(torch.aminmax, "Tensor.aminmax", aten.aminmax.default)
def _(b: Lowering, input: Value, *, dim: int | None = None, keepdim: bool = False) -> Any:
    return tuple(_reduced(b, op, input, dim, keepdim) for op in ("amin", "amax"))


@lowers(torch.sort, "Tensor.sort", aten.sort.default, aten.sort.stable)
def _(
    b: Lowering, input: Value, dim: int = -1, descending: bool = False, stable: Any = None
) -> Any:
    at = b.dim(input, dim)
    values = b.emit("sort_values", input, dim=at, descending=bool(descending))
    options = {} if stable is None else {"stable": bool(stable)}
    return values, _indices(b, input, "sort", dim=at, descending=bool(descending), **options)


@lowers(torch.msort, "Tensor.msort", aten.msort.default)
def _(b: Lowering, input: Value) -> Value:
    return b.emit("sort_values", input, dim=0, descending=False)


@lowers(torch.topk, "Tensor.topk", aten.topk.default)
def _(
    b: Lowering, input: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> Any:
    at = b.dim(input, dim)
    if not isinstance(b.shape(input)[at], int):
        return b.reject(f"topk along the dynamic dimension {at} mixes samples")
    ordered = b.emit("sort_values", input, dim=at, descending=bool(largest))
    values = b.emit("slice", ordered, dim=at, start=0, stop=k, step=1)
    return values, _indices(b, input, "topk", k, at, bool(largest), bool(sorted))


@lowers(torch.kthvalue, "Tensor.kthvalue", aten.kthvalue.default)
def _(b: Lowering, input: Value, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    at = b.dim(input, dim)
    value = _ranked(b, input, k - 1, at, keepdim)
    return value, _indices(b, input, "kthvalue", k, at, keepdim)


@lowers(torch.median, "Tensor.median", aten.median.default, aten.median.dim)
def _(b: Lowering, input: Value, dim: int | None = None, keepdim: bool = False) -> Any:
    flat = reshape_to(b, input, (-1,)) if dim is None else input
    at = 0 if dim is None else b.dim(input, dim)
    size = b.shape(flat)[at]
    if not isinstance(size, int):
        return b.reject(f"median along the dynamic dimension {at} mixes samples")
    value = _ranked(b, flat, (size - 1) // 2, at, keepdim)
    return value if dim is None else (value, _indices(b, input, "median", at, keepdim))


@lowers(torch.quantile, "Tensor.quantile", aten.quantile.scalar)
def _(
    b: Lowering,
    input: Value,
    q: Any,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: str = "linear",
) -> Value:
    """Between two neighbours of the sorted values, by a weight that depends on q alone."""
    if not isinstance(q, int | float):
        return b.reject("quantile for a tensor of q has no bound rule", help="call it for each q")
    flat = reshape_to(b, input, (-1,)) if dim is None else input
    at = 0 if dim is None else b.dim(input, dim)
    size = b.shape(flat)[at]
    if not isinstance(size, int):
        return b.reject(f"quantile along the dynamic dimension {at} mixes samples")
    if interpolation not in ("linear", "lower", "higher"):
        return b.reject(f"quantile with interpolation={interpolation!r} has no bound rule")
    # As torch finds it, in the dtype of the values.
    rank = float(torch.tensor(q, dtype=to_torch(input.type.dtype)) * (size - 1))
    low = _ranked(b, flat, math.floor(rank), at, keepdim)
    high = _ranked(b, flat, math.ceil(rank), at, keepdim)
    if interpolation != "linear" or rank == math.floor(rank):
        return high if interpolation == "higher" else low
    share = rank - math.floor(rank)
    return b.emit(
        "add",
        b.emit("mul_scalar", low, other=1.0 - share),
        b.emit("mul_scalar", high, other=share),
    )


def _ranked(b: Lowering, x: Value, rank: int, dim: int, keepdim: bool) -> Value:
    ordered = b.emit("sort_values", x, dim=dim, descending=False)
    value = b.emit("select", ordered, dim=dim, index=rank)
    if keepdim:
        shape = b.shape(value)
        value = reshape_to(b, value, (*shape[:dim], 1, *shape[dim:]))
    return value


def _lower_scan(op: str) -> Any:
    def lower(b: Lowering, input: Value, dim: int) -> Any:
        at = b.dim(input, dim)
        values = b.emit(op, input, dim=at)
        return values, _indices(b, input, op.removesuffix("_values"), at)

    return lower


lowers(torch.cummax, "Tensor.cummax", aten.cummax.default)(_lower_scan("cummax_values"))
lowers(torch.cummin, "Tensor.cummin", aten.cummin.default)(_lower_scan("cummin_values"))
