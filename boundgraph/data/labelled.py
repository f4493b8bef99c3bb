"""Batches of labelled samples from whatever a user has: tensors, a `DataLoader`, a generator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

from torch import Tensor

from boundgraph.errors import DataError

LabelledData = tuple[Tensor, Tensor] | Iterable[Any]


def sample_count(data: LabelledData, limit: int | None = None) -> int | None:
    """How many samples `labelled_batches` will yield in all, None where nobody can tell."""
    if isinstance(data, tuple):
        total = len(data[1]) if _is_pair(data) else None
    else:
        dataset = getattr(data, "dataset", None)
        total = len(dataset) if isinstance(dataset, Sized) else None
    return total if total is None or limit is None else min(total, limit)


def labelled_batches(
    data: LabelledData, batch_size: int, limit: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches `(x, y)` in the order of the data; empty ones are left out.

    Args:
        data: `(x, y)` tensors, cut into batches here, or an iterable of pairs `(x, y)`.
        batch_size: samples a batch where `data` is tensors.
        limit: stop after so many samples.

    Raises:
        DataError: something that is not a pair of tensors with one label a sample.
    """
    left = limit
    for item in _items(data, batch_size):
        if not _is_pair(item):
            raise DataError(f"data must yield pairs (x, y) of tensors, it yielded {_name(item)}")
        x, y = item
        if x.dim() == 0 or y.dim() != 1 or len(x) != len(y):
            raise DataError(
                "x must be [n, ...] and y [n], one label a sample; got shapes "
                f"{list(x.shape)} and {list(y.shape)}"
            )
        if left is not None:
            x, y = x[:left], y[:left]
            left -= len(x)
        if len(x):
            yield x, y
        if left == 0:
            return


def _items(data: LabelledData, size: int) -> Iterator[Any]:
    if (
        isinstance(data, tuple)
        and _is_pair(data)
        and data[0].dim()
        and len(data[0]) == len(data[1])
    ):
        x, y = data
        for start in range(0, len(x), size):
            yield x[start : start + size], y[start : start + size]
    elif isinstance(data, tuple) and _is_pair(data):
        yield data
    elif isinstance(data, Iterable) and not isinstance(data, Tensor):
        yield from data
    else:
        raise DataError(f"data must be (x, y) tensors or yield them, got {type(data).__name__}")


def _is_pair(item: Any) -> bool:
    return (
        isinstance(item, list | tuple)
        and len(item) == 2
        and all(isinstance(part, Tensor) for part in item)
    )


def _name(item: Any) -> str:
    if isinstance(item, list | tuple):
        return f"({', '.join(type(part).__name__ for part in item)})"
    return type(item).__name__
