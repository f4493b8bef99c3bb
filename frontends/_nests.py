"""Containers of values: what is in them, and the same container of other things."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from boundgraph.ir.program import Value


def has(kind: type | tuple[type, ...], *values: Any) -> bool:
    """Whether a nest of containers holds an object of some type."""
    for value in values:
        if isinstance(value, kind):
            return True
        if isinstance(value, slice):
            value = (value.start, value.stop, value.step)
        if isinstance(value, dict):
            value = tuple(value.values())
        if isinstance(value, list | tuple) and has(kind, *value):
            return True
    return False


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a nest of containers."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def values_in(arg: Any) -> list[Value]:
    """The program values in a nest of containers."""
    if isinstance(arg, Value):
        return [arg]
    if isinstance(arg, slice):
        arg = (arg.start, arg.stop, arg.step)
    items = arg.values() if isinstance(arg, dict) else arg
    if isinstance(arg, list | tuple | dict):
        return [value for item in items for value in values_in(item)]
    return []


def plain(value: Any) -> Any:
    """fx's immutable containers as ordinary ones."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    if isinstance(value, list):
        return [plain(item) for item in value]
    return tuple(map(plain, value)) if type(value) is tuple else value


def map_values(fn: Callable[[Value], Value], arg: Any) -> Any:
    """A nest of lists and tuples with its program values replaced."""
    if isinstance(arg, Value):
        return fn(arg)
    return type(arg)(map_values(fn, item) for item in arg) if type(arg) in (list, tuple) else arg


def rebuild(like: Any, items: list[Any]) -> Any:
    """Items in a container like another: list, tuple, named tuple or torch's own tuples."""
    kind = type(like)
    return kind(*items) if hasattr(like, "_fields") else kind(items)


def same_nest(shadow: Any, result: Any) -> Any:
    """A lowering's results in the containers that torch uses."""
    if isinstance(shadow, Tensor) == isinstance(result, Value):
        if isinstance(shadow, Tensor):
            return result
        if isinstance(shadow, tuple | list) and len(shadow) == len(result):
            return rebuild(shadow, [same_nest(s, r) for s, r in zip(shadow, result, strict=True)])
    raise TypeError(f"it gives {type(result).__name__}, torch gives {type(shadow).__name__}")


def simple_index(index: Any) -> bool:
    """Whether an index gives a view: numbers, slices, None and Ellipsis."""
    items = index if isinstance(index, tuple) else (index,)
    return all(
        item is None
        or item is Ellipsis
        or isinstance(item, slice)
        or (isinstance(item, int) and not isinstance(item, bool))
        for item in items
    )
