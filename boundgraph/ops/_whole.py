"""Ops that call a user's function or module: how a call is written, run and bounded.

A call's attributes hold its arguments, in which `#0` stands for operand 0 (see
`constant.encode`), and for a module what stands for it. The module's parameters and buffers
are the last operands; it runs over them as a copy, so that the user's is never touched.
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from boundgraph.domains.interval import Interval, as_interval
from boundgraph.domains.linear_form import Lines
from boundgraph.errors import ConfigError
from boundgraph.ops._kinds import elementwise as elementwise_op
from boundgraph.ops._spec import Kind, OpCase, OpSpec, Rounding, Sampler, batch_first
from boundgraph.ops._spelling import uniform
from boundgraph.ops.constant import decode, encode

# Modules by the text that stands for them in programs; both hold them weakly.
_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_modules: weakref.WeakValueDictionary[str, nn.Module] = weakref.WeakValueDictionary()
# By how much of their size ends may cross by rounding; beyond it a rule is wrong.
_CROSSED = 1e-4
# What `check_op` allows where nothing is declared, in ulps, and the roundings of a magnitude.
_ULPS, _TERMS = 32.0, 64
# Modules that a sampler made live until the test is over, though programs hold them weakly.
_keep: list[nn.Module] = []


def identity_of(module: nn.Module) -> str:
    """What stands for a module in the attributes of its calls.

    Random, so that a saved program finds no other module in another process.
    """
    if module not in _names:
        _names[module] = uuid.uuid4().hex
        _modules[_names[module]] = module
    return _names[module]


def tensor_names(module: nn.Module) -> tuple[str, ...]:
    """Its parameters and buffers, in the order in which they are operands."""
    parameters = module.named_parameters(remove_duplicate=False)
    buffers = module.named_buffers(remove_duplicate=False)
    return tuple(name for name, _ in (*parameters, *buffers))


def _arguments(
    operands: Any, args: Any, kwargs: Any, inputs: int | None, module: str | None
) -> tuple[list[Any], dict[str, Any]]:
    """What a call gives its function, or a rule of it."""
    given = tuple(operands)
    found = [decode(value, given) for value in args]
    if module is not None:
        found.insert(0, _with_tensors(module, given[inputs:]))
    return found, {key: decode(value, given) for key, value in kwargs}


def _with_tensors(identity: str, tensors: Any) -> nn.Module:
    module = _modules.get(identity)
    if module is None:
        raise ConfigError(
            "a module that is kept whole does not exist in this process, or no more; a program "
            "that calls it cannot be loaded elsewhere: compile the model again"
        )
    return copy_over(module, dict(zip(tensor_names(module), tensors, strict=True)), "")


def copy_over(module: nn.Module, tensors: dict[str, Any], prefix: str) -> nn.Module:
    """A module like another, over other tensors; the other, which others may use, is untouched."""
    copy = object.__new__(type(module))
    state = dict(module.__dict__)
    if getattr(state.get("forward"), "recorded", False):
        del state["forward"]
    for table in ("_parameters", "_buffers"):
        state[table] = {
            key: None if value is None else tensors[f"{prefix}{key}"]
            for key, value in state[table].items()
        }
    state["_modules"] = {
        key: None if child is None else copy_over(child, tensors, f"{prefix}{key}.")
        for key, child in state["_modules"].items()
    }
    copy.__dict__.update(state)
    return copy


def tensor_at(module: nn.Module, path: str) -> Any:
    """A parameter or buffer, or the proxy that stands for it while the module is traced."""
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


@dataclass(frozen=True)
class _Call:
    """A function for a node of an emitted graph to call: traced code must not look inside."""

    function: Any
    name: str
    attrs: tuple[tuple[str, Any], ...]

    def __post_init__(self) -> None:
        for field in ("__name__", "__qualname__"):
            object.__setattr__(self, field, self.name)

    def __call__(self, *operands: Any) -> Any:
        return _run(self.function, *operands, **dict(self.attrs))


def _run(
    function: Any,
    *operands: Any,
    args: Any,
    kwargs: Any,
    inputs: int | None = None,
    module: str | None = None,
) -> Any:
    given, named = _arguments(operands, args, kwargs, inputs, module)
    if module is None:
        return function(*given, **named)
    made, *given = given
    # Its hooks are around the call in the program already.
    return made.forward(*given, **named)


def runner(function: Any) -> Callable[..., Any]:
    """The concrete meaning of an op; None for the forward of the module in its attributes."""
    label = getattr(function, "__name__", "module_call")

    def run(*operands: Any, **attrs: Any) -> Any:
        proxy = next((item for item in operands if isinstance(item, fx.Proxy)), None)
        if proxy is None:
            return _run(function, *operands, **attrs)
        call = _Call(function, label, tuple(attrs.items()))
        return proxy.tracer.create_proxy("call_function", call, operands, {})

    return run


def _enclosing(name: str, rule: Any, boundable: tuple[int, ...]) -> Callable[..., Interval]:
    """A user's interval rule; ends that cross become NaN, which never certifies."""

    def interval(
        *operands: Any,
        args: Any,
        kwargs: Any,
        inputs: int | None = None,
        module: str | None = None,
    ) -> Interval:
        boxes = [as_interval(x) if i in boundable else x for i, x in enumerate(operands)]
        given, named = _arguments(boxes, args, kwargs, inputs, module)
        found = rule(*given, **named)
        if not isinstance(found, Interval):
            raise ConfigError(
                f"the interval rule of {name!r} gives {type(found).__name__}, not an Interval"
            )
        return _uncrossed(found)

    return interval


def _uncrossed(found: Interval) -> Interval:
    lower, upper = found.lower, found.upper
    wrong = lower - upper > (lower.abs() + upper.abs()) * _CROSSED
    nan = lower * torch.nan
    return Interval(
        torch.where(wrong, nan, torch.minimum(lower, upper)),
        torch.where(wrong, nan, torch.maximum(lower, upper)),
    )


@dataclass(frozen=True)
class Rules:
    """What a user says about a function or module; see `custom.register_op`.

    Args:
        module: for a leaf, the module.
    """

    interval: Callable[..., Interval] | None
    relaxation: Callable[..., Lines] | None
    bounded: tuple[int, ...]
    partial: bool
    sample: Callable[..., Any] | None
    ulps: float | None
    magnitude: Callable[..., Tensor] | None
    module: nn.Module | None = None

    def spec(self, name: str, run: Callable[..., Any], *, elementwise: bool) -> OpSpec:
        """The op, of kind elementwise or composite.

        Args:
            name: of the op.
            run: its concrete meaning.
            elementwise: it is a function of one tensor, element by element.
        """
        terms = None if self.magnitude is None else lambda *_, **__: _TERMS
        declared = self.ulps is not None
        rounding = Rounding(self.ulps if self.ulps is not None else _ULPS, terms, declared=declared)
        sample = self.sample or (uniform() if elementwise else None)
        common: dict[str, Any] = {
            "interval": None
            if self.interval is None
            else _enclosing(name, self.interval, self.bounded),
            "rounding": rounding,
            "magnitude": self._size,
            "sample": None if sample is None else _drawing(sample, self.module),
            "partial": self.partial,
            "user": True,
            "summary": "registered by the user",
        }
        if not elementwise:
            whole = {"boundable": self.bounded, "batch": batch_first, **common}
            return OpSpec(name, Kind.COMPOSITE, run, **whole)
        if self.bounded != (0,):
            raise ConfigError(f"{name!r}: an elementwise function has one tensor, at position 0")
        lines = None if self.relaxation is None else _between(name, self.relaxation)
        return elementwise_op(name, run, lines=lines, add=lambda spec: spec, **common)

    @property
    def _size(self) -> Callable[..., Tensor] | None:
        magnitude = self.magnitude
        return None if magnitude is None else lambda *operands, **_: magnitude(*operands)


def _between(name: str, rule: Callable[..., Lines]) -> Callable[..., Lines]:
    """A user's relaxation, as the registry calls it."""

    def lines(
        *operands: Any,
        args: Any,
        kwargs: Any,
        inputs: int | None = None,
        module: str | None = None,
    ) -> Lines:
        given, named = _arguments(operands, args, kwargs, inputs, module)
        found = rule(*given, **named)
        if not isinstance(found, Lines):
            raise ConfigError(f"the relaxation of {name!r} gives {type(found).__name__}, not Lines")
        return found

    return lines


def _drawing(sample: Any, leaf: nn.Module | None) -> Sampler:
    """A user's sampler of calls as one of operands and attributes."""

    def draw(rng: Any) -> OpCase:
        drawn = sample(rng)
        module, case = drawn if isinstance(drawn, tuple) else (leaf, drawn)
        inputs = len(case.shapes)
        attrs: dict[str, Any] = {
            "args": tuple(f"#{i}" for i in range(inputs)),
            "kwargs": tuple((key, encode(value, [])) for key, value in case.attrs.items()),
        }
        shapes, given = case.shapes, dict(case.given)
        if module is not None:
            attrs |= {"inputs": inputs, "module": identity_of(module)}
            tensors = [tensor_at(module, path) for path in tensor_names(module)]
            shapes = (*shapes, *(tuple(tensor.shape) for tensor in tensors))
            given |= {inputs + i: tensor.detach() for i, tensor in enumerate(tensors)}
            _keep.append(module)
            del _keep[:-64]
        return OpCase(
            shapes,
            attrs,
            case.bounded,
            case.low,
            case.high,
            case.positive,
            case.indices,
            case.masks,
            tuple(given.items()),
        )

    return draw
