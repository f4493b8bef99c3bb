"""Slices of a batch as inputs of a program, and its outputs joined again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.ir.program import Program, Value
from boundgraph.ir.types import Dim, FormType, SymbolicType


def tensor_of(value: Any) -> Tensor:
    return value.any_part if isinstance(value, Interval) else value


def batch_size(program: Program, values: dict[str, Any]) -> int:
    """Samples: the dynamic size, or what the first input's first dimension says."""
    for value in program.inputs:
        for position, entry in enumerate(value.type.shape):
            if isinstance(entry, Dim) and (entry.coeff, entry.offset) == (1, 0):
                return int(tensor_of(values[str(value)]).shape[position])
    return 1


def device_of(inputs: Sequence[Any]) -> torch.device:
    return next(tensor_of(value).device for value in inputs if value is not None)


def _batch_at(value: Value) -> int | None:
    """The dimension that is the batch size itself, None where there is none."""
    for position, entry in enumerate(value.type.shape):
        if isinstance(entry, Dim) and (entry.coeff, entry.offset) == (1, 0):
            return position
    return None


def separable(program: Program, inputs: Sequence[Any]) -> bool:
    """Whether a slice of the batch is an input of its own, and outputs can be joined."""
    dynamic = [
        value
        for value in (*program.inputs, *program.outputs)
        if any(isinstance(entry, Dim) for entry in value.type.shape)
    ]
    plain = all(isinstance(tensor_of(value), Tensor) for value in inputs)
    return (
        plain
        and all(_batch_at(value) is not None for value in dynamic)
        and all(value in dynamic for value in program.outputs)
        and not any(isinstance(v.type, SymbolicType | FormType) for v in program.outputs)
    )


def cut(value: Value, given: Any, at: slice | Tensor) -> Any:
    dim = _batch_at(value)
    if dim is None:
        return given
    index = (slice(None),) * dim + (at,)
    if isinstance(given, Interval):
        return Interval(given.lower[index], given.upper[index])
    return given[index]


def join(value: Value, parts: Sequence[Any]) -> Any:
    dim = _batch_at(value)
    assert dim is not None
    if isinstance(parts[0], Interval):
        return Interval(
            torch.cat([part.lower for part in parts], dim),
            torch.cat([part.upper for part in parts], dim),
        )
    return torch.cat(list(parts), dim)


def first_true(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of the true entries of `[batch, n]`, and which of them are real.

    Both `[batch, most in a row]`; shorter lists are filled up by repeating their first entry.
    """
    count = mask.sum(1)
    most = int(count.max()) if mask.numel() else 0
    order = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    real = torch.arange(most, device=mask.device) < count.unsqueeze(1)
    return torch.where(real, order, order[:, :1]) if most else order, real


def by_sample(x: Tensor, batch_dim: int | None) -> Tensor:
    """`[batch, elements]`; one sample where there is no batch dimension."""
    if batch_dim is None:
        return x.reshape(1, -1)
    moved = x.movedim(batch_dim, 0)
    # A sample may be a single number.
    return moved.flatten(1) if moved.dim() > 1 else moved.unsqueeze(1)


def from_samples(x: Tensor, batch_dim: int | None, shape: torch.Size) -> Tensor:
    """`[batch, elements]` in the shape of the value again."""
    if batch_dim is None:
        return x.reshape(shape)
    features = [size for dim, size in enumerate(shape) if dim != batch_dim]
    return x.reshape((-1, *features)).movedim(0, batch_dim)
