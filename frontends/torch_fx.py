"""Symbolic tracing: fast, and precise about what it cannot follow."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from boundgraph.frontends._preserve import TouchedError, Untouched
from boundgraph.frontends._wrapper import CallOf, strip

_InstanceNorm = nn.modules.instancenorm._InstanceNorm
_BatchNorm = nn.modules.batchnorm._BatchNorm


def trace(wrapper: CallOf) -> fx.Graph:
    """The graph of a call of the model.

    Every module is traced through, so hooks, parametrizations and subclasses mean what
    they mean when the model runs. Parameters and buffers are read by path, never by value.

    Raises:
        Exception: whatever tracing raises where it cannot follow the model.
    """
    tracer = _Tracer()
    for module in wrapper.modules():
        if isinstance(module, _BatchNorm):
            # Tracing cannot follow its branch on the rank; the node it becomes does, when shapes are known.
            module.__dict__["_check_input_dim"] = _recorded_check(type(module)._check_input_dim, module)
    with Untouched():
        return tracer.trace(wrapper)


def tensor_of(wrapper: nn.Module, node: fx.Node) -> Tensor:
    """The tensor that an attribute node reads."""
    found: Any = wrapper
    for part in str(node.target).split("."):
        found = getattr(found, part)
    if not isinstance(found, Tensor):
        raise TypeError(f"the model reads {node.target}, which is {type(found).__name__}")
    return found


def module_of(node: fx.Node) -> str:
    """Path of the module that was running."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    return strip(paths[-1]) if paths else ""


def _recorded_check(check: Callable[..., None], module: nn.Module) -> Callable[[Any], None]:
    def record(input: Any) -> None:
        if isinstance(input, fx.Proxy):
            bound = _Check(check, module)
            input.tracer.create_proxy("call_function", bound, (input,), {})
        else:
            check(module, input)

    return record


class _Check:
    """A function for a node to call: `module._check_input_dim` as it was."""

    def __init__(self, check: Callable[..., None], module: nn.Module) -> None:
        self._check, self._module = check, module
        self.__name__ = type(module).__name__
        self.__qualname__ = self.__name__
        self.__module__ = __name__

    def __call__(self, input: Tensor) -> None:
        self._check(self._module, input)


class _Proxy(fx.Proxy):
    """Records writes as writes; fx alone turns `x += y` into `x = x + y`."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _in_place(function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def record(self: Any, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    setattr(_Proxy, f"__i{_name}__", _in_place(getattr(operator, f"i{_name}")))


class _ParameterProxy(_Proxy):
    """Stands for a parameter or buffer, whose metadata is known."""

    def __init__(self, tracer: fx.Tracer, node: fx.Node, tensor: Tensor) -> None:
        super().__init__(node, tracer)
        self._tensor = tensor

    @property
    def shape(self) -> torch.Size:
        return self._tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._tensor.dtype

    @property
    def ndim(self) -> int:
        return self._tensor.ndim

    @property
    def requires_grad(self) -> bool:
        return self._tensor.requires_grad

    def dim(self) -> int:
        return self._tensor.dim()

    def size(self, dim: int | None = None) -> Any:
        return self._tensor.size() if dim is None else self._tensor.size(dim)

    def numel(self) -> int:
        return self._tensor.numel()

    def is_floating_point(self) -> bool:
        return self._tensor.is_floating_point()

    def __len__(self) -> int:
        return len(self._tensor)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.record_stack_traces = True
        self._grad_enabled = torch.is_grad_enabled()
        self._autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
        self._paths: dict[int, str] = {}

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        named = (*root.named_parameters(), *root.named_buffers())
        self._paths = {id(tensor): path for path, tensor in reversed(named)}
        return super().trace(root, concrete_args)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        path = self._paths.get(id(attr_val)) if isinstance(attr_val, Tensor) else None
        if path is None:
            return attr_val
        # A node for each read: a buffer may have been written in between.
        return self.create_proxy(
            "get_attr",
            path,
            (),
            {},
            proxy_factory_fn=lambda node: _ParameterProxy(self, node, attr_val),  # type: ignore[arg-type, return-value]
        )

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if torch.is_grad_enabled() != self._grad_enabled:
            raise TouchedError("the model switches gradients on or off, which tracing loses")
        now = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
        if now != self._autocast:
            raise TouchedError("the model uses autocast, which tracing loses")
        return super().create_node(*args, **kwargs)
