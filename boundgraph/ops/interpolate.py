"""Interpolation: along each dimension a fixed matrix, or fixed indices.

All modes of `torch.nn.functional.interpolate` act on one dimension after the other. What
they do to one is read off torch's own result on the unit vectors.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.ir.program import Value
from boundgraph.ops._dtypes import to_torch
from boundgraph.ops._spec import Lowering, lowers

aten = torch.ops.aten
_NEAREST = ("nearest", "nearest-exact")
_MODES = {"linear": "linear", "bilinear": "linear", "trilinear": "linear", "bicubic": "bicubic"}
_IN_TWO = {"linear": "bilinear"}


def _along(
    size: int, target: int | None, scale: float | None, mode: str, options: dict[str, Any]
) -> Tensor:
    """What interpolation makes of each unit vector: `[size, result size]`."""
    units = torch.eye(size, dtype=torch.float64).unsqueeze(1)
    flat = mode != "bicubic" and not options.get("antialias")
    # Those modes do not exist in one dimension.
    shaped, name = (units, mode) if flat else (units.unsqueeze(2), _IN_TWO.get(mode, mode))
    given: dict[str, Any]
    if scale is None:
        given = {"size": target if flat else (1, target)}
    else:
        given = {"scale_factor": scale if flat else (1.0, scale)}
    return F.interpolate(shaped, mode=name, **given, **options).flatten(1)


def _resize(
    b: Lowering,
    x: Value,
    sizes: tuple[int | None, ...],
    scales: tuple[float | None, ...],
    mode: str,
    options: dict[str, Any],
) -> Value:
    rank, spatial = len(b.shape(x)), len(sizes)
    for i, (target, scale) in enumerate(zip(sizes, scales, strict=True)):
        dim = rank - spatial + i
        size = b.shape(x)[dim]
        assert isinstance(size, int)
        with torch.device("cpu"):
            table = _along(size, target, scale, mode, options)
        if mode in _NEAREST:
            x = b.emit("index_select", x, b.tensor(table.argmax(0)), dim=dim)
            continue
        if torch.equal(table, torch.eye(size, dtype=table.dtype)):
            continue
        weight = b.tensor(table.T.contiguous().to(to_torch(x.type.dtype)))
        last = (*range(dim), *range(dim + 1, rank), dim)
        back = (*range(dim), rank - 1, *range(dim, rank - 1))
        moved = b.emit("permute", x, dims=last) if dim != rank - 1 else x
        moved = b.emit("linear", moved, weight)
        x = b.emit("permute", moved, dims=back) if dim != rank - 1 else moved
    return x


def _each(value: Any, count: int) -> tuple[Any, ...]:
    if value is None:
        return (None,) * count
    return tuple(value) if isinstance(value, tuple | list) else (value,) * count


@lowers(F.interpolate)
def _(
    b: Lowering,
    input: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Value:
    shape = b.shape(input)[2:]
    spatial = len(shape)
    sizes, scales = _each(size, spatial), _each(scale_factor, spatial)
    if recompute_scale_factor and scale_factor is not None:
        sizes = tuple(int(s * f) for s, f in zip(shape, scales, strict=True))  # type: ignore[operator]
        scales = (None,) * spatial
    if mode == "area":
        targets = tuple(
            target if target is not None else int(s * f)  # type: ignore[operator]
            for s, target, f in zip(shape, sizes, scales, strict=True)
        )
        return b.emit(f"adaptive_avg_pool{spatial}d", input, output_size=targets)
    if mode in _NEAREST:
        return _resize(b, input, sizes, scales, mode, {})
    options: dict[str, Any] = {"align_corners": align_corners}
    if antialias:
        options["antialias"] = True
    return _resize(b, input, sizes, scales, _MODES[mode], options)


@lowers(F.upsample, F.upsample_nearest)
def _(
    b: Lowering,
    input: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Value:
    sizes, scales = (_each(v, len(b.shape(input)) - 2) for v in (size, scale_factor))
    if mode == "nearest":
        return _resize(b, input, sizes, scales, mode, {})
    return _resize(b, input, sizes, scales, _MODES[mode], {"align_corners": align_corners})


def _lower_nearest(mode: str, spatial: int) -> Any:
    def lower(
        b: Lowering, input: Value, output_size: Any = None, scale_factors: Any = None, *rest: Any
    ) -> Value:
        # `vec` overloads give a list of factors; the others one factor per dimension.
        scales = (scale_factors, *rest) if rest else scale_factors
        return _resize(
            b,
            input,
            _each(None if scales_given(scales) else output_size, spatial),
            _each(scales if scales_given(scales) else None, spatial),
            mode,
            {},
        )

    return lower


def scales_given(scales: Any) -> bool:
    return scales is not None and any(s is not None for s in _each(scales, 1))


def _lower_linear(mode: str, spatial: int, antialias: bool = False) -> Any:
    def lower(
        b: Lowering,
        input: Value,
        output_size: Any,
        align_corners: bool,
        scale_factors: Any = None,
        *rest: Any,
    ) -> Value:
        scales = (scale_factors, *rest) if rest else scale_factors
        options: dict[str, Any] = {"align_corners": align_corners}
        if antialias:
            options["antialias"] = True
        return _resize(
            b,
            input,
            _each(None if scales_given(scales) else output_size, spatial),
            _each(scales if scales_given(scales) else None, spatial),
            mode,
            options,
        )

    return lower


for _n in (1, 2, 3):
    for _mode, _name in (
        ("nearest", f"upsample_nearest{_n}d"),
        ("nearest-exact", f"_upsample_nearest_exact{_n}d"),
    ):
        _packet = getattr(aten, _name)
        lowers(_packet.default, _packet.vec)(_lower_nearest(_mode, _n))
for _n, _name in ((1, "linear1d"), (2, "bilinear2d"), (3, "trilinear3d")):
    _packet = getattr(aten, f"upsample_{_name}")
    lowers(_packet.default, _packet.vec)(_lower_linear("linear", _n))
for _name, _mode, _smooth in (
    ("upsample_bicubic2d", "bicubic", False),
    ("_upsample_bicubic2d_aa", "bicubic", True),
    ("_upsample_bilinear2d_aa", "linear", True),
):
    _packet = getattr(aten, _name)
    lowers(_packet.default, _packet.vec)(_lower_linear(_mode, 2, _smooth))
