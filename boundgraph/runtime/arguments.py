"""What a program is called with: regions checked against its inputs, intervals as tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.regions import Region, norm_of
from boundgraph.errors import NonFiniteError, RegionError
from boundgraph.ir.program import Value
from boundgraph.ir.types import Dim, IntervalType
from boundgraph.ops._dtypes import from_torch


def check_regions(
    expected: Sequence[Value],
    regions: Sequence[Region | Tensor],
    norms: Mapping[str, float],
    corners: Callable[[Any], Interval] | None = None,
) -> list[Interval | Tensor]:
    """One value for each input.

    Args:
        expected: the program's inputs.
        regions: one for each.
        norms: p of the inputs that were compiled for p-balls.
        corners: makes an interval of a region; its own by default.

    Raises:
        RegionError: a region does not fit its input.
        NonFiniteError: a plain tensor holds NaN or infinity.
    """
    if len(regions) != len(expected):
        names = ", ".join(value.name for value in expected)
        raise RegionError(
            f"{len(regions)} regions given, the model takes {len(expected)} inputs: {names}"
        )
    sizes: dict[str, int] = {}
    checked: list[Interval | Tensor] = []
    for value, region in zip(expected, regions, strict=True):
        checked.append(_check_region(value, region, sizes, corners))
        wanted, norm = norms.get(value.name), norm_of(region)
        if wanted != norm:
            raise RegionError(
                f"input {value.name!r} was compiled for {_region_name(wanted)}, "
                f"got {_region_name(norm)}; compile again for the new kind of region"
            )
    return checked


def check_dtypes(
    expected: Sequence[Value], regions: Sequence[Region | Tensor], weights: Iterable[Tensor]
) -> None:
    """Raise RegionError where a region has neither the program's dtype nor that of all weights.

    A model that was converted with everything in it runs in its new dtype.
    """
    converted = {from_torch(w.dtype) for w in weights if w.is_floating_point()}
    for value, region in zip(expected, regions, strict=True):
        tensor = region if isinstance(region, Tensor) else region.center
        given = from_torch(tensor.dtype)
        if given != value.type.dtype and converted != {given}:
            raise RegionError(
                f"input {value.name!r} is {given}, the program takes {value.type}; convert it, or "
                "compile again"
            )


def _region_name(norm: float | None) -> str:
    return "a box" if norm is None else f"a ball of the {norm:g}-norm"


def flatten(values: Sequence[Interval | Tensor]) -> list[Tensor]:
    """Tensors for an emitted module: an interval as its two ends."""
    flat: list[Tensor] = []
    for value in values:
        flat.extend((value.lower, value.upper) if isinstance(value, Interval) else (value,))
    return flat


def _check_region(
    value: Value,
    region: Region | Tensor,
    sizes: dict[str, int],
    corners: Callable[[Any], Interval] | None = None,
) -> Interval | Tensor:
    bounded = isinstance(value.type, IntervalType)
    if bounded != isinstance(region, Region):
        wanted = "a region (Box, LinfBall, LpBall)" if bounded else "a plain tensor"
        raise RegionError(
            f"input {value.name!r} was compiled as {wanted}, got {type(region).__name__}"
        )
    shape = tuple(region.shape)
    fits = len(shape) == len(value.type.shape)
    for have, want in zip(shape, value.type.shape, strict=False):
        if isinstance(want, Dim):
            solved, rest = divmod(have - want.offset, want.coeff)
            fits = fits and not rest and sizes.setdefault(want.symbol, solved) == solved
        else:
            fits = fits and have == want
    if not fits:
        raise RegionError(
            f"input {value.name!r} has shape {list(shape)}, the program takes {value.type}"
            + (f" (with {sizes})" if sizes else "")
        )
    if not isinstance(region, Tensor):
        return corners(region) if corners is not None else region.interval()
    if region.is_floating_point() and not bool(torch.isfinite(region).all()):
        raise NonFiniteError(f"input {value.name!r} holds NaN or infinity")
    return region
