"""What a node of an fx graph calls: its function, its name, its lowering."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from boundgraph.ops import lowering
from boundgraph.ops.constant import EncodingError, resolve

aten = torch.ops.aten

_METHOD_TYPES = (type(Tensor.add), type(Tensor.T))
# Results of these may share memory with their operand or not, depending on strides.
_MAY_ALIAS = {
    *("reshape", "reshape_as", "contiguous", "flatten", "ravel", "to", "type", "type_as"),
    *("float", "double", "half", "bfloat16", "int", "long", "cpu", "cuda", "dropout"),
}


def key_of(node: fx.Node) -> Hashable:
    """The function itself, or `Tensor.name` for methods and attributes of tensors."""
    target: Any = node.target
    if node.op == "call_method":
        return f"Tensor.{target}"
    if target is getattr:
        return f"Tensor.{node.args[1]}"
    if isinstance(target, _METHOD_TYPES):
        name = str(getattr(target, "__name__", ""))
        if getattr(Tensor, name, None) is target:
            return f"Tensor.{name}"
    return target  # type: ignore[no-any-return]


def function_of(node: fx.Node) -> Callable[..., Any]:
    """What the node runs, on meta tensors and numbers."""
    if node.op == "call_method":
        name = str(node.target)
        if name in ("cpu", "cuda"):
            # Meta tensors, on which this runs, have no data to move.
            return lambda x, *args, **kwargs: x
        return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)
    return node.target  # type: ignore[return-value]


def base_name(key: Hashable) -> str:
    """`relu_` for `F.relu_`, `"Tensor.relu_"` and `aten.relu_.default`."""
    if isinstance(key, OpOverload):
        return str(key._schema.name).rpartition("::")[2]
    return key.rpartition(".")[2] if isinstance(key, str) else getattr(key, "__name__", str(key))


def display_name(key: Hashable) -> str:
    """How a message calls it."""
    return base_name(key).strip("_")


def may_alias(key: Hashable) -> bool:
    return base_name(key) in _MAY_ALIAS


def find_lowering(key: Hashable) -> Callable[..., Any] | None:
    """The lowering of a target, of its functional counterpart, or of its function form."""
    for candidate in (key, *_counterparts(key)):
        found = lowering(candidate)
        if found is not None:
            return found
    return None


def _counterparts(key: Hashable) -> list[Hashable]:
    name = base_name(key)
    found: list[Any] = []
    if isinstance(key, str):
        plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        found = [f"Tensor.{plain}", getattr(torch, plain, None)]
    elif isinstance(key, OpOverload):
        if name.endswith("_") and key.namespace == "aten":
            packet = getattr(aten, name[:-1], None)
            found = [getattr(packet, key._overloadname, None)]
    elif getattr(operator, name, None) is key and name.startswith("i"):
        found = [getattr(operator, name[1:], None)]
    elif name.endswith("_"):
        found = [getattr(F, name[:-1], None), getattr(torch, name[:-1], None)]
    return [item for item in found if item is not None]


def dotted(key: Hashable, *, functional: bool) -> str:
    """The text by which the `call` op finds the function again.

    Args:
        key: as `key_of` gives it.
        functional: the call writes into an operand; name the counterpart that does not.

    Raises:
        EncodingError: when no torch function of that name is this one.
    """
    # `operator.or_` is no write; its name avoids a word of Python.
    written = base_name(key).endswith("_") and not base_name(key).endswith("__")
    if not functional and written and getattr(operator, base_name(key), None) is not key:
        raise EncodingError(f"`{base_name(key)}` changes its operand")
    for candidate in _counterparts(key) if functional else (key,):
        for name in _names(candidate):
            try:
                found = resolve(name)
            except EncodingError:
                continue
            if isinstance(candidate, str) or found is candidate:
                return name
    raise EncodingError(f"`{display_name(key)}` is not a torch function")


def _names(key: Any) -> list[str]:
    if isinstance(key, str):
        return [key]
    if isinstance(key, OpOverload):
        return [str(key)]
    name = base_name(key)
    module = str(getattr(key, "__module__", ""))
    places = ("torch", "torch.nn.functional", "torch.linalg", "torch.special", "torch.fft")
    return [f"{place}.{name}" for place in (*places, "operator")] + [f"{module}.{name}"]


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices calls that do more than compute."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.random = False
        self.statistics = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.random |= torch.Tag.nondeterministic_seeded in func.tags
        self.statistics |= _updates_statistics(func, args)
        return func(*args, **(kwargs or {}))


def _updates_statistics(func: Any, args: Any) -> bool:
    """Whether an overload writes into running statistics, which its schema may not say."""
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False))
    return given.get("running_mean") is not None and bool(given.get("training", True))
