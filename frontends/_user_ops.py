"""Calls of the user's own ops, while a model is captured: one node each, in either frontend."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from boundgraph.frontends._generic import impurity
from boundgraph.ops import custom, lowers
from boundgraph.ops._infer import meta_tensor
from boundgraph.ops._spec import Lowering
from boundgraph.ops._whole import copy_over, tensor_at, tensor_names
from boundgraph.ops.constant import EncodingError

_sites: ContextVar[dict[str, _Site] | None] = ContextVar("sites", default=None)


@dataclass(frozen=True)
class _Site:
    """A call: what is called, and its arguments without the tensors among them.

    Args:
        made: what was registered.
        module: the module that is called, if it is one.
        leaves, tree: the arguments; a tensor is the position in the node's operands.
        inputs: number of those operands; the module's tensors follow.
    """

    made: custom.Registration
    module: nn.Module | None
    leaves: tuple[Any, ...]
    tree: pytree.TreeSpec
    inputs: int

    def arguments(self, operands: Any) -> tuple[Any, Any]:
        leaves = [operands[x.at] if isinstance(x, _Operand) else x for x in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.tree)
        return args, kwargs

    def run(self, operands: Any) -> Any:
        """The call itself, on tensors."""
        args, kwargs = self.arguments(operands)
        if self.module is None:
            return self.made.target(*args, **kwargs)
        names = tensor_names(self.module)
        tensors = dict(zip(names, operands[self.inputs :], strict=True))
        return copy_over(self.module, tensors, "").forward(*args, **kwargs)


@dataclass(frozen=True)
class _Operand:
    at: int


@contextmanager
def user_ops(model: nn.Module) -> Iterator[None]:
    """Record calls of registered functions and modules in `model` until the block ends.

    The `forward` of such a module is replaced; `preserved` puts it back.
    """
    token = _sites.set({})
    for module in model.modules():
        made = custom.registration_of(module)
        if made is not None:
            module.__dict__["forward"] = _recorded(made, module)
    try:
        with custom.recording(_record):
            yield
    finally:
        _sites.reset(token)


def _recorded(made: custom.Registration, module: nn.Module) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return _record(made, module, args, kwargs)

    forward.recorded = True  # type: ignore[attr-defined]
    return forward


def _record(made: custom.Registration, module: nn.Module | None, args: Any, kwargs: Any) -> Any:
    """Make a node of a call, whatever the tensors are: proxies, or those of an export."""
    flat, tree = pytree.tree_flatten((args, kwargs))
    operands: list[Any] = []
    leaves: list[Any] = []
    for item in flat:
        if issubclass(type(item), fx.Proxy) or isinstance(item, Tensor):
            leaves.append(_Operand(len(operands)))
            operands.append(item)
        else:
            leaves.append(item)
    inputs = len(operands)
    if module is not None:
        operands += [tensor_at(module, name) for name in tensor_names(module)]
    sites = _sites.get()
    assert sites is not None
    proxy = next((item for item in operands if issubclass(type(item), fx.Proxy)), None)
    site = _Site(made, module, tuple(leaves), tree, inputs)
    if proxy is None and not torch.compiler.is_exporting():
        # Type inference and rules run functions of the user's on plain tensors.
        return site.run(operands)
    key = f"call{len(sites)}"
    sites[key] = site
    if proxy is not None:
        return proxy.tracer.create_proxy("call_function", user_call, (operands, key), {})
    return _operator()(operands, key)


def _site(key: str) -> _Site:
    sites = _sites.get()
    assert sites is not None, "a call of the user's is met outside of capture"
    return sites[key]


def user_call(operands: Any, key: str) -> Any:
    """The call that a key stands for."""
    return _site(key).run(operands)


@functools.cache
def _operator() -> Any:
    """The same as an operator of torch, which export keeps as one node."""

    def run(operands: list[Tensor], key: str) -> Tensor:
        result = _site(key).run(operands)
        if not isinstance(result, Tensor):
            raise TypeError(f"`{_site(key).made.name}` gives {type(result).__name__}, not a tensor")
        return torch.empty_like(result)

    schema = "(Tensor[] operands, str key) -> Tensor"
    made = torch.library.custom_op("boundgraph::user_call", run, mutates_args=(), schema=schema)
    made.register_fake(run)
    overload = torch.ops.boundgraph.user_call.default
    lowers(overload)(_lower)
    return overload


@lowers(user_call)
def _lower(b: Lowering, operands: Any, key: str) -> Any:
    site = _site(key)
    args, kwargs = site.arguments(operands)
    name = site.made.name
    points = _without_data(operands)
    with torch.device("meta"):
        message = impurity(name, site.run, (points,), {})
    if any(point._version for point in points):
        message = f"`{name}` writes into its operands"
    if message is not None:
        return b.reject(message, "take it out of the function")
    tensors = operands[site.inputs :]
    try:
        return custom.emit_call(b, site.made, site.module, args, kwargs, tensors)
    except EncodingError as error:
        return b.reject(f"`{name}`: {error}", "pass tensors, numbers and texts only")


def _without_data(operands: Any) -> list[Tensor]:
    sizes = {dim.symbol: 5 for v in operands for dim in v.type.shape if not isinstance(dim, int)}
    return [meta_tensor(value.type, sizes) for value in operands]
