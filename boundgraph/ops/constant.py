"""Ops without bound rules: any torch function of unperturbed values, and what nobody can bound.

`call` runs a torch function by name. It lets a model compute with its parameters, or
with inputs that a region leaves alone, in ways that the registry has no op for. Its
arguments are attributes, in which text that begins with `#` stands for something else:
`#0` is operand 0, `#dtype:f32` a dtype, `##...` a text that begins with `#`. Where the
function gives several tensors, `output` is the path to one of them.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import get_overridable_functions

from boundgraph.errors import Diagnostic, UnsupportedError
from boundgraph.ir.program import Value
from boundgraph.ir.types import Dim
from boundgraph.ops._dtypes import from_torch, to_torch
from boundgraph.ops._kinds import structural
from boundgraph.ops._spec import Kind, Lowering, OpCase, OpSpec, keep_batch, lowers, register

aten = torch.ops.aten
_REFERENCE = re.compile(r"#\d+")
_MODULES = {"torch": torch, "operator": operator}
_ENUMS = {
    "memory_format": (
        torch.contiguous_format,
        torch.preserve_format,
        torch.channels_last,
        torch.channels_last_3d,
    ),
    "layout": (torch.strided,),
}


class EncodingError(ValueError):
    """A call that cannot be written as attributes."""


def resolve(target: str) -> Callable[..., Any]:
    """The function that a target names.

    Args:
        target: `torch.nn.functional.elu`, `operator.getitem`, `Tensor.cumsum`, or an
            overload such as `aten.cumsum.default`.

    Raises:
        EncodingError: when there is no such function.
    """
    root, *path = target.split(".")
    if root == "Tensor" and len(path) == 1 and hasattr(Tensor, path[0]):
        return functools.partial(_attribute, path[0])
    current: Any = _MODULES.get(root) or getattr(torch.ops, root, None)
    for name in path:
        current = getattr(current, name, None)
    if not path or not _computes(current):
        raise EncodingError(f"{target!r} names no function of tensors")
    return current  # type: ignore[no-any-return]


def _computes(function: Any) -> bool:
    """Whether this is a function of tensors; a saved program must not reach anything else."""
    name = getattr(function, "__name__", "")
    if not callable(function) or "from_file" in name:
        return False
    if isinstance(function, OpOverload) or getattr(operator, name, None) is function:
        return True
    native = getattr(torch._C._VariableFunctions, name, None) == function
    return native or id(function) in _overridable()


@functools.cache
def _overridable() -> frozenset[int]:
    functions = get_overridable_functions()
    return frozenset(id(function) for group in functions.values() for function in group)


def _attribute(name: str, x: Any, *args: Any, **kwargs: Any) -> Any:
    """A method or a property of a tensor, or of the proxy that stands for one."""
    found = getattr(x, name)
    return found(*args, **kwargs) if callable(getattr(Tensor, name)) else found


def encode(value: Any, operands: list[Value]) -> Any:
    """Write an argument as an attribute; the `Value`s in it are appended to `operands`.

    Raises:
        EncodingError: for an object that attributes cannot hold.
    """
    if isinstance(value, Value):
        if value not in operands:
            operands.append(value)
        return f"#{operands.index(value)}"
    if value is None or type(value) in (bool, int, float) or isinstance(value, Dim):
        return value
    if isinstance(value, str):
        return f"#{value}" if value.startswith("#") else value
    if isinstance(value, torch.dtype):
        return f"#dtype:{from_torch(value)}"
    if isinstance(value, torch.device):
        return f"#device:{value}"
    if isinstance(value, slice):
        return ("#slice", *(encode(v, operands) for v in (value.start, value.stop, value.step)))
    if value is Ellipsis:
        return "#ellipsis"
    if isinstance(value, list | tuple):
        items = tuple(encode(item, operands) for item in value)
        return ("#list", *items) if isinstance(value, list) else items
    if isinstance(value, torch.memory_format | torch.layout):
        kind = "layout" if isinstance(value, torch.layout) else "memory_format"
        return f"#{kind}:{value}"
    raise EncodingError(f"an argument of type {type(value).__name__} cannot be kept in a program")


def decode(value: Any, operands: tuple[Any, ...]) -> Any:
    """The argument that an attribute stands for."""
    if isinstance(value, tuple):
        # Sizes may be proxies, which must not be compared.
        head = value[0] if value and isinstance(value[0], str) else None
        if head == "#slice":
            return slice(*(decode(item, operands) for item in value[1:]))
        if head == "#list":
            return [decode(item, operands) for item in value[1:]]
        return tuple(decode(item, operands) for item in value)
    if not isinstance(value, str) or not value.startswith("#"):
        return value
    if value.startswith("##"):
        return value[1:]
    if _REFERENCE.fullmatch(value):
        return operands[int(value[1:])]
    if value == "#ellipsis":
        return Ellipsis
    kind, _, name = value[1:].partition(":")
    if kind == "dtype":
        return to_torch(name)
    if kind == "device":
        # On meta tensors only shapes are computed, wherever the call will run.
        on_meta = any(isinstance(x, Tensor) and x.is_meta for x in operands)
        return torch.device("meta") if on_meta else torch.device(name)
    return next(item for item in _ENUMS[kind] if str(item) == name)


def _call(
    *operands: Any,
    target: str,
    args: tuple[Any, ...],
    kwargs: tuple[Any, ...],
    output: tuple[int, ...],
) -> Any:
    keywords = {name: decode(value, operands) for name, value in kwargs}
    result = resolve(target)(*(decode(value, operands) for value in args), **keywords)
    for position in output:
        result = result[position]
    return result


def _unsupported(*operands: Tensor, message: str, help: str | None, **_: Any) -> Tensor:
    raise UnsupportedError(Diagnostic(message, help=help))


register(
    OpSpec(
        "call",
        Kind.CONSTANT,
        _call,
        boundable=(),
        summary="any torch function, of values without bounds",
    )
)
register(
    OpSpec(
        "unsupported",
        Kind.CONSTANT,
        _unsupported,
        boundable=(),
        summary="stands for what cannot be bounded; raises when it runs",
    )
)
structural(
    "detach",
    lambda x: x.detach(),
    lifted=lambda g: g.detach(),
    adjoint=lambda coeff, **_: coeff,
    batch=keep_batch,
    sample=lambda rng: OpCase(((rng.randint(1, 3), rng.randint(1, 3)),)),
    summary="the same values, cut off from the gradient",
)


@lowers(torch.detach, "Tensor.detach", "Tensor.data", aten.detach.default)
def _(b: Lowering, input: Value) -> Value:
    return b.emit("detach", input)


@lowers("Tensor.detach_", aten.detach_.default, aten.lift_fresh.default, torch.Tensor.detach_)
def _(b: Lowering, input: Value) -> Value:
    return b.emit("detach", input) if b.depends(input) else input


@lowers("Tensor.requires_grad_")
def _(b: Lowering, input: Value, requires_grad: bool = True) -> Value:
    return input


def blank(b: Lowering, shape: Any, value: Any, dtype: torch.dtype) -> Value:
    """A constant of one number: a scalar constant, expanded, so that a shape may be dynamic."""
    scalar = b.tensor(torch.tensor(value, dtype=dtype))
    if not tuple(shape):
        return scalar
    result = b.emit("expand", scalar, shape=tuple(shape))
    return b.set_zero(result) if not value else result


def _shape_of(sizes: tuple[Any, ...], size: Any) -> tuple[Any, ...]:
    if size is not None:
        return tuple(size)
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes


def _plain(value: float) -> Callable[..., Value]:
    def lower(b: Lowering, *sizes: Any, size: Any = None, dtype: Any = None, **_: Any) -> Value:
        shape = _shape_of(sizes, size)
        return blank(b, shape, value, dtype or torch.get_default_dtype())

    return lower


def _like(value: float) -> Callable[..., Value]:
    def lower(b: Lowering, input: Value, *, dtype: Any = None, **_: Any) -> Value:
        return blank(b, b.shape(input), value, dtype or to_torch(input.type.dtype))

    return lower


def _new(value: float) -> Callable[..., Value]:
    def lower(
        b: Lowering, input: Value, *sizes: Any, size: Any = None, dtype: Any = None, **_: Any
    ) -> Value:
        shape = _shape_of(sizes, size)
        return blank(b, shape, value, dtype or to_torch(input.type.dtype))

    return lower


lowers(torch.zeros, aten.zeros.default)(_plain(0))
lowers(torch.ones, aten.ones.default)(_plain(1))
lowers(torch.zeros_like, aten.zeros_like.default)(_like(0))
lowers(torch.ones_like, aten.ones_like.default)(_like(1))
lowers("Tensor.new_zeros", aten.new_zeros.default)(_new(0))
lowers("Tensor.new_ones", aten.new_ones.default)(_new(1))


@lowers(torch.full, aten.full.default)
def _(b: Lowering, size: Any, fill_value: Any, *, dtype: Any = None, **_: Any) -> Value:
    return blank(b, size, fill_value, dtype or torch.tensor(fill_value).dtype)


@lowers(torch.full_like, aten.full_like.default)
def _(b: Lowering, input: Value, fill_value: Any, *, dtype: Any = None, **_: Any) -> Value:
    return blank(b, b.shape(input), fill_value, dtype or to_torch(input.type.dtype))


@lowers("Tensor.new_full", aten.new_full.default)
def _(
    b: Lowering, input: Value, size: Any, fill_value: Any, *, dtype: Any = None, **_: Any
) -> Value:
    return blank(b, size, fill_value, dtype or to_torch(input.type.dtype))


@lowers("Tensor.fill", torch.fill, aten.fill.Scalar, aten.fill.Tensor)
def _(b: Lowering, input: Value, value: Any) -> Value:
    dtype = to_torch(input.type.dtype)
    if not isinstance(value, Value):
        return blank(b, b.shape(input), value, dtype)
    if value.type.dtype != input.type.dtype:
        return b.reject("filling a tensor with a number of another dtype has no bound rule")
    lead = (1,) * len(b.shape(input))
    return b.emit("expand", b.emit("reshape", value, shape=lead), shape=b.shape(input))


@lowers("Tensor.zero", aten.zero.default)
def _(b: Lowering, input: Value) -> Value:
    return blank(b, b.shape(input), 0, to_torch(input.type.dtype))
