"""Leave the user's model, and the random state, as capture found them."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from boundgraph.frontends._nests import tensors_in
from boundgraph.frontends._writes import storage

# Loggers of failures that a capture expects.
_EXPECTED = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")


class Generators:
    """The states of the random generators that Python code draws from."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy: Any = np.random.get_state()
        self._torch = torch.get_rng_state()

    def moved(self) -> bool:
        """Whether anything was drawn since."""
        now: Any = np.random.get_state()
        return (
            self._python != random.getstate()
            or not np.array_equal(self._numpy[1], now[1])
            or self._numpy[2] != now[2]
            or not torch.equal(self._torch, torch.get_rng_state())
        )

    def restore(self) -> None:
        random.setstate(self._python)
        np.random.set_state(self._numpy)


@contextmanager
def preserved(model: nn.Module) -> Iterator[Generators]:
    """Restore every attribute of every submodule, and the random generators, on exit."""
    before = [(module, _copies(module)) for module in model.modules()]
    generators = Generators()
    try:
        with torch.random.fork_rng():
            yield generators
    finally:
        generators.restore()
        for module, attributes in before:
            _restore(module, attributes)


@contextmanager
def eager() -> Iterator[None]:
    """What `torch.compile` made runs as plain Python; torch keeps its own failures to itself.

    A compiled module can be traced neither as it is nor by `torch.export` on fake tensors,
    which crashes. And torch logs failures, with tracebacks, that a capture expects and
    reports in its own words.
    """
    logs = [logging.getLogger(name) for name in _EXPECTED]
    before = [log.disabled for log in logs]
    for log in logs:
        log.disabled = True
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for log, disabled in zip(logs, before, strict=True):
            log.disabled = disabled


def plain_attributes(model: nn.Module) -> dict[str, Any]:
    """Numbers, flags and texts that the modules hold, by dotted name."""
    return {
        f"{name}.{key}".lstrip("."): value
        for name, module in model.named_modules()
        for key, value in module.__dict__.items()
        if isinstance(value, bool | int | float | str)
    }


def changed_attributes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names in `before` whose value is another one in `after`."""
    return [
        name
        for name, value in before.items()
        if type(after.get(name)) is not type(value) or repr(after[name]) != repr(value)
    ]


def _copies(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each attribute and, of a container, a copy of what it holds."""
    return {
        name: (value, value.copy() if isinstance(value, dict | list | set) else None)
        for name, value in module.__dict__.items()
    }


def _restore(module: nn.Module, attributes: dict[str, tuple[Any, Any]]) -> None:
    for name in [name for name in module.__dict__ if name not in attributes]:
        del module.__dict__[name]
    for name, (value, copy) in attributes.items():
        module.__dict__[name] = value
        if isinstance(value, dict | list | set) and _identities(value) != _identities(copy):
            _refill(value, copy)


def _identities(value: Any) -> Any:
    """The very objects in a container; comparing them would compare tensors."""
    if isinstance(value, dict):
        return [(id(key), id(item)) for key, item in value.items()]
    return [id(item) for item in value] if isinstance(value, list) else set(map(id, value))


def _refill(value: Any, copy: Any) -> None:
    value.clear()
    if isinstance(value, list):
        value.extend(copy)
    else:
        value.update(copy)


class TouchedError(RuntimeError):
    """The model computes with tensors that tracing does not see."""


class Untouched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses to compute with tensors that existed before tracing began, and randomly.

    During symbolic tracing what the tracer sees is never a real tensor. Real tensors that
    the model computes with (through `self.parameters()`, globals, lists) would be frozen
    at their present values, or written into.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise TouchedError(f"the model draws random numbers with {func}")
        # torch.tensor passes what it has just made through this call.
        fresh = func is torch.ops.aten.lift_fresh.default
        for tensor in () if fresh else tensors_in((args, kwargs)):
            if storage(tensor) not in self._made:
                raise TouchedError(
                    f"the model computes with a tensor that symbolic tracing does not see ({func})"
                )
        result = func(*args, **kwargs)
        for tensor in tensors_in(result):
            self._made[storage(tensor)] = tensor
        return result
