"""What lowerings of compound functions are written with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from boundgraph.errors import InternalError
from boundgraph.ir.program import Value
from boundgraph.ops._spec import Lowering, lowering
from boundgraph.ops.constant import blank as blank
from boundgraph.ops.constant import encode


def use(b: Lowering, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The value of a torch function that has a lowering."""
    found = lowering(function)
    if found is None:
        raise InternalError(f"{function} has no lowering")
    return found(b, *args, **kwargs)


def plain(b: Lowering, target: str, *args: Any, **kwargs: Any) -> Value:
    """The value of a torch function of operands that carry no bound.

    Args:
        target: as the `call` op spells it.
        args, kwargs: its arguments, with `Value`s for tensors.
    """
    operands: list[Value] = []
    attrs = {
        "target": target,
        "args": encode(tuple(args), operands),
        "kwargs": tuple((name, encode(value, operands)) for name, value in kwargs.items()),
    }
    return b.emit("call", *operands, **attrs, output=())
