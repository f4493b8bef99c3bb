"""Average, adaptive average and max pooling."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm
from boundgraph.ir.program import Value
from boundgraph.ops._kinds import affine
from boundgraph.ops._spec import (
    Kind,
    Lowering,
    OpCase,
    OpSpec,
    Rounding,
    batch_first,
    lowers,
    over_symbols,
    register,
)
from boundgraph.ops.conv import _spread, _with_batch

aten = torch.ops.aten
_AVERAGE = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_ADAPTIVE = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
_MAXIMUM = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_ADAPTIVE_MAX = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)


def _sampler(spatial: int, keys: tuple[str, ...]) -> Any:
    def sample(rng: random.Random) -> OpCase:
        kernel = tuple(rng.randint(1, 3) for _ in range(spatial))
        attrs: dict[str, Any] = {
            "kernel_size": kernel,
            "stride": tuple(rng.randint(1, 3) for _ in range(spatial)),
            "padding": tuple(rng.randint(0, k // 2) for k in kernel),
            "ceil_mode": rng.random() < 0.5,
        }
        if "count_include_pad" in keys:
            attrs["count_include_pad"] = rng.random() < 0.5
        if "dilation" in keys:
            attrs["dilation"] = (1,) * spatial
        size = tuple(rng.randint(4, 6) for _ in range(spatial))
        return OpCase(((rng.randint(1, 2), rng.randint(1, 2), *size),), attrs)

    return sample


def _sample_adaptive(spatial: int) -> Any:
    def sample(rng: random.Random) -> OpCase:
        size = tuple(rng.randint(2, 6) for _ in range(spatial))
        target = tuple(rng.randint(1, 4) for _ in range(spatial))
        return OpCase(((rng.randint(1, 2), 2, *size),), {"output_size": target})

    return sample


def _average_adjoint(spatial: int) -> Any:
    """The transpose of average pooling, which torch has as its gradient."""

    def adjoint(coeff: Tensor, *, shapes: Any, target: Any, **attrs: Any) -> Tensor:
        options = [attrs[key] for key in ("kernel_size", "stride", "padding")]
        flags = (attrs["ceil_mode"], attrs["count_include_pad"], None)
        size = shapes[0][2:]
        if spatial == 1:
            # There is no one-dimensional gradient op: pool along the last of two dimensions.
            size = (1, *size)
            options = [(1, *options[0]), (1, *options[1]), (0, *options[2])]
        op = aten.avg_pool3d_backward if spatial == 3 else aten.avg_pool2d_backward

        def transpose(folded: Tensor) -> Tensor:
            grad = folded.unsqueeze(2) if spatial == 1 else folded
            blank = grad.new_zeros((grad.shape[0], shapes[0][1], *size))
            back = op(grad, blank, *options, *flags)
            return back.squeeze(2) if spatial == 1 else back

        return over_symbols(transpose, coeff)

    return adjoint


def _adaptive_adjoint(spatial: int) -> Any:
    def adjoint(coeff: Tensor, *, shapes: Any, target: Any, output_size: Any) -> Tensor:
        size = (1, *shapes[0][2:]) if spatial == 1 else shapes[0][2:]
        op = (
            aten._adaptive_avg_pool3d_backward
            if spatial == 3
            else aten._adaptive_avg_pool2d_backward
        )

        def transpose(folded: Tensor) -> Tensor:
            grad = folded.unsqueeze(2) if spatial == 1 else folded
            back = op(grad, grad.new_zeros((grad.shape[0], shapes[0][1], *size)))
            return back.squeeze(2) if spatial == 1 else back

        return over_symbols(transpose, coeff)

    return adjoint


def _max_backward(spatial: int) -> Any:
    """The largest of a window is at least any one of them and at most the largest upper end.

    Below stands the element with the largest lower end, above a constant.
    """

    def backward(
        form: LinearForm,
        pre: Interval,
        *,
        operand: int,
        carry: bool,
        shapes: Any,
        target: Any,
        sample_dims: tuple[int, ...],
        **attrs: Any,
    ) -> LinearForm:
        options = {key: attrs[key] for key in ("kernel_size", "stride", "padding", "dilation")}
        lower = pre.lower
        if spatial == 1:
            # There is no one-dimensional gradient op: pool along the last of two dimensions.
            lower = lower.unsqueeze(2)
            options = {k: (int(k != "padding"), *v) for k, v in options.items()}
        flat = spatial == 3
        pool = F.max_pool3d if flat else F.max_pool2d
        _, where = pool(lower, **options, ceil_mode=attrs["ceil_mode"], return_indices=True)
        op = (
            aten.max_pool3d_with_indices_backward if flat else aten.max_pool2d_with_indices_backward
        )
        positive, negative = form.coeff.clamp(min=0.0), form.coeff.clamp(max=0.0)
        rows = positive.shape[0]
        grad = (positive.unsqueeze(3) if spatial == 1 else positive) + torch.zeros_like(
            where.unsqueeze(0), dtype=positive.dtype
        )
        spread = where.unsqueeze(0).expand((rows, *(-1,) * _rank(spatial))).flatten(0, 1)
        blank = (
            torch.zeros_like(lower)
            .unsqueeze(0)
            .expand((rows, *(-1,) * _rank(spatial)))
            .flatten(0, 1)
        )
        back = op(
            grad.flatten(0, 1),
            blank,
            options["kernel_size"],
            options["stride"],
            options["padding"],
            options["dilation"],
            attrs["ceil_mode"],
            spread,
        )
        if spatial == 1:
            back = back.squeeze(2)
        upper = _MAXIMUM[spatial - 1](pre.upper, **attrs)
        coeff = back.unflatten(0, (rows, -1))
        return LinearForm(coeff, form.shifted((negative * upper).sum(sample_dims)))

    return backward


def _rank(spatial: int) -> int:
    """Rank of a batched tensor as the pooling ops see it."""
    return 4 if spatial == 1 else spatial + 2


def _define_selection(name: str, fn: Any, sample: Any, summary: str, backward: Any = None) -> None:
    def concrete(x: Tensor, **attrs: Any) -> Tensor:
        return fn(x, **attrs)

    register(
        OpSpec(
            name,
            Kind.SELECTION,
            concrete,
            interval=lambda x, **attrs: Interval(
                concrete(x.lower, **attrs), concrete(x.upper, **attrs)
            ),
            boundable=(0,),
            batch=batch_first,
            backward=backward,
            sample=sample,
            summary=summary,
        )
    )


def _define(spatial: int) -> None:
    average, adaptive = _AVERAGE[spatial - 1], _ADAPTIVE[spatial - 1]
    affine(
        f"avg_pool{spatial}d",
        lambda x, **attrs: average(x, **attrs),
        adjoint=_average_adjoint(spatial),
        rounding=Rounding(ulps=2, terms=lambda x, *, kernel_size, **_: math.prod(kernel_size) + 1),
        sample=_sampler(spatial, ("count_include_pad",)),
        summary=f"{spatial}-d average pooling",
    )
    affine(
        f"adaptive_avg_pool{spatial}d",
        lambda x, *, output_size: adaptive(x, output_size),
        adjoint=_adaptive_adjoint(spatial),
        rounding=Rounding(ulps=2, terms=lambda x, **_: math.prod(x.shape[2:]) + 1),
        sample=_sample_adaptive(spatial),
        summary=f"{spatial}-d average pooling to a fixed output size",
    )
    _define_selection(
        f"max_pool{spatial}d",
        _MAXIMUM[spatial - 1],
        _sampler(spatial, ("dilation",)),
        f"{spatial}-d max pooling",
        _max_backward(spatial),
    )
    _define_selection(
        f"adaptive_max_pool{spatial}d",
        _ADAPTIVE_MAX[spatial - 1],
        _sample_adaptive(spatial),
        f"{spatial}-d max pooling to a fixed output size",
    )


def _lower_average(spatial: int) -> Any:
    def lower(
        b: Lowering,
        input: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Value:
        if divisor_override is not None:
            return b.reject("avg_pool with divisor_override has no bound rule")
        kernel = _spread(kernel_size, spatial)
        attrs = {
            "kernel_size": kernel,
            "stride": _spread(stride, spatial) if stride not in (None, (), []) else kernel,
            "padding": _spread(padding, spatial),
            "ceil_mode": ceil_mode,
            "count_include_pad": count_include_pad,
        }
        return _with_batch(b, input, spatial, lambda x: b.emit(f"avg_pool{spatial}d", x, **attrs))

    return lower


def _lower_maximum(spatial: int) -> Any:
    def lower(
        b: Lowering,
        input: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Value:
        if return_indices:
            return b.reject("max_pool with return_indices: the indices depend on the input")
        kernel = _spread(kernel_size, spatial)
        attrs = {
            "kernel_size": kernel,
            "stride": _spread(stride, spatial) if stride not in (None, (), []) else kernel,
            "padding": _spread(padding, spatial),
            "dilation": _spread(dilation, spatial),
            "ceil_mode": ceil_mode,
        }
        return _with_batch(b, input, spatial, lambda x: b.emit(f"max_pool{spatial}d", x, **attrs))

    return lower


def _lower_adaptive(op: str, spatial: int) -> Any:
    def lower(b: Lowering, input: Value, output_size: Any, return_indices: bool = False) -> Value:
        if return_indices:
            return b.reject("adaptive_max_pool with return_indices: they depend on the input")
        spatial_shape = b.shape(input)[-spatial:]
        target = tuple(
            spatial_shape[i] if entry is None else entry
            for i, entry in enumerate(_spread(output_size, spatial))
        )
        return _with_batch(b, input, spatial, lambda x: b.emit(op, x, output_size=target))

    return lower


_ATEN_AVERAGE = (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
_ATEN_MAXIMUM = (aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
_ATEN_ADAPTIVE = (
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default,
)
for _n in (1, 2, 3):
    _define(_n)
    lowers(_AVERAGE[_n - 1], _ATEN_AVERAGE[_n - 1])(_lower_average(_n))
    lowers(_MAXIMUM[_n - 1], _ATEN_MAXIMUM[_n - 1], getattr(torch, f"max_pool{_n}d"))(
        _lower_maximum(_n)
    )
    lowers(_ADAPTIVE[_n - 1], _ATEN_ADAPTIVE[_n - 1])(
        _lower_adaptive(f"adaptive_avg_pool{_n}d", _n)
    )
    lowers(_ADAPTIVE_MAX[_n - 1])(_lower_adaptive(f"adaptive_max_pool{_n}d", _n))
