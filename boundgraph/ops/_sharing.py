"""What several nodes of one emission have in common, computed once.

Backward bounds walk from every value with bounds of its own to the inputs, and each walk meets the
same relaxed ops over the same intervals. Equal calls are merged in what is emitted in any case;
not recording them at all is what keeps a program of n relaxed ops from taking n² times the
calls of a line to emit. What runs keep of the like is in `runtime/shared_lines.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

Result = TypeVar("Result")

_known: ContextVar[dict[Any, tuple[Any, Any]] | None] = ContextVar("known", default=None)


@contextmanager
def sharing() -> Iterator[None]:
    """Rules marked `shared` keep their results until the block ends."""
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def shared(rule: Callable[..., Result]) -> Callable[..., Result]:
    """A rule that gives one result for the same operands, the very objects, while `sharing`."""

    @functools.wraps(rule)
    def once(*args: Any, **attrs: Any) -> Result:
        known = _known.get()
        if known is None:
            return rule(*args, **attrs)
        key = (rule, *map(id, args), *((name, _same(value)) for name, value in attrs.items()))
        if key not in known:
            # With the operands, so that no id is given away again.
            known[key] = ((args, attrs), rule(*args, **attrs))
        result: Result = known[key][1]
        return result

    return once


def _same(attr: Any) -> Any:
    """A key that compares no proxies: that would record the comparison."""
    if isinstance(attr, tuple):
        return tuple(map(_same, attr))
    # 1, 1.0 and True are equal to Python but not to torch.
    return (type(attr), repr(attr)) if isinstance(attr, int | float | str) else id(attr)
