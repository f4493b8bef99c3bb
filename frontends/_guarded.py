"""Functions of torch that must not see a proxy.

A proxy says that it is a `Tensor`. torch's C++ parser of arguments believes it where an
overload takes a number in the place of a tensor (`torch.pow(2.0, x)`), reads memory that
is not there, and crashes Python. While a model is traced these functions are recorded
before their arguments are parsed. A function of `torch.autograd.Function` takes its arguments
apart in C++ just so; it is refused here, and `torch.export`, whose tensors are real, looks inside.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._device import _device_constructors

from boundgraph.frontends._preserve import TouchedError

# Most were found by calling every function with such an overload, each in its own process.
GUARDED = {
    name: getattr(torch, name)
    for name in (
        *("pow", "float_power", "where", "remainder", "xlogy", "clamp", "clip", "result_type"),
        *("as_tensor", "asarray", "tensor", "scalar_tensor"),
        # These take a size of the batch, which is a proxy too, and then dispatch on nothing.
        *("zeros", "ones", "full"),
    )
}
CHECKS = {name: getattr(torch, name) for name in ("_check", "_check_with")}
_APPLY = torch.autograd.Function.__dict__["apply"]
_lock = threading.Lock()
_depth = 0


@contextmanager
def guarded() -> Iterator[None]:
    """Record calls of these functions on proxies, from any thread, until the block ends."""
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            # torch notes once which functions make tensors, for `with torch.device(...)`.
            _device_constructors()
            for name, function in GUARDED.items():
                setattr(torch, name, _recorded(function))
            for name, function in CHECKS.items():
                setattr(torch, name, _asserted(function))
            torch.autograd.Function.apply = classmethod(_refused)  # type: ignore[assignment]


def _leave() -> None:
    global _depth
    with _lock:
        _depth -= 1
        if _depth == 0:
            for name, function in (GUARDED | CHECKS).items():
                setattr(torch, name, function)
            torch.autograd.Function.apply = _APPLY


def _refused(function: Any, *args: Any, **kwargs: Any) -> Any:
    if any(issubclass(type(leaf), fx.Proxy) for leaf in pytree.tree_leaves((args, kwargs))):
        raise TouchedError(f"the model applies {function.__name__}, an autograd.Function")
    return _APPLY.__get__(None, function)(*args, **kwargs)


def _asserted(function: Callable[..., Any]) -> Callable[..., Any]:
    """An assertion without its message, which a graph cannot hold."""

    def call(*args: Any, **kwargs: Any) -> Any:
        for leaf in (*args, *kwargs.values()):
            if issubclass(type(leaf), fx.Proxy):
                check = CHECKS["_check"]
                return leaf.tracer.create_proxy("call_function", check, (leaf,), {})
        return function(*args, **kwargs)

    return call


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        for leaf in pytree.tree_leaves((args, kwargs)):
            if issubclass(type(leaf), fx.Proxy):
                return leaf.tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return call
