"""Symbolic tracing: fast, and precise about what it cannot follow."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from boundgraph.frontends import _targets as targets
from boundgraph.frontends._generic import to_meta, without_data
from boundgraph.frontends._guarded import guarded
from boundgraph.frontends._preserve import TouchedError, Untouched
from boundgraph.frontends._proxies import BATCHES, UNKNOWN, Sizes, Traced, TracedParameter
from boundgraph.frontends._wrapper import CallOf, strip
from boundgraph.source import is_library

_BatchNorm = nn.modules.batchnorm._BatchNorm
# Functions of torch in Python that consist of calls which have lowerings.
_OPENED = (F.multi_head_attention_forward,)


def trace(wrapper: CallOf, examples: Sequence[Tensor], batched: Sequence[bool]) -> fx.Graph:
    """The graph of a call of the model.

    Every module is traced through, so hooks, parametrizations and subclasses mean what
    they mean when the model runs. Parameters and buffers are read by path, never by value.

    Args:
        wrapper: a call of the model.
        examples: inputs, of which only shape and dtype are used.
        batched: which of them have the batch as dimension 0, of any size.

    Raises:
        Exception: whatever tracing raises where it cannot follow the model.
    """
    tracer = _Tracer(examples, batched)
    for module in wrapper.modules():
        if isinstance(module, _BatchNorm):
            # Its check branches on the rank; a node does it when shapes are known.
            check = type(module)._check_input_dim
            module.__dict__["_check_input_dim"] = _recorded_check(check, module)
    with Untouched(), guarded():
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
        if issubclass(type(input), fx.Proxy):
            input.tracer.create_proxy("call_function", _Check(check, module), (input,), {})
        else:
            check(module, input)

    return record


class _Check:
    """A function for a node to call: `module._check_input_dim` as it was."""

    def __init__(self, check: Callable[..., None], module: nn.Module) -> None:
        self._check, self._module = check, module
        self.__name__ = self.__qualname__ = type(module).__name__
        self.__module__ = __name__

    def __call__(self, input: Tensor) -> None:
        self._check(self._module, input)


class _Tracer(fx.Tracer):
    def __init__(self, examples: Sequence[Tensor], batched: Sequence[bool]) -> None:
        super().__init__()
        self.record_stack_traces = False
        self._modes = _modes()
        self._paths: dict[int, str] = {}
        self._attributes: dict[str, Tensor] = {}
        self._runs = [
            _ShadowRun(examples, batched, size, self._attribute)
            for size in (None, *(BATCHES if any(batched) else ()))
        ]

    def _attribute(self, path: str) -> Tensor | None:
        """A parameter or buffer, or a constant that tracing has put on the root itself."""
        return self._attributes.get(path, getattr(self.root, path, None))

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        named = (*root.named_parameters(), *root.named_buffers())
        self._paths = {id(tensor): path for path, tensor in reversed(named)}
        return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        path = self._paths.get(id(attr_val)) if isinstance(attr_val, Tensor) else None
        if path is None:
            return attr_val
        if path not in self._attributes:
            with _disable_current_modes():
                self._attributes[path] = without_data(attr_val)
        # A node for each read: a buffer may have been written in between.
        return self.create_proxy(
            "get_attr",
            path,
            (),
            {},
            proxy_factory_fn=lambda node: TracedParameter(self, node, attr_val),  # type: ignore[arg-type, return-value]
        )

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Traced(node, self)

    def create_arg(self, a: Any) -> Any:
        # By its real type: to everyone else a proxy claims to be what it stands for.
        return a.node if issubclass(type(a), fx.Proxy) else super().create_arg(a)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any
    ) -> Any:
        if target is operator.getitem:
            args = pytree.tree_map(_as_number, args)
        if kind == "call_function" and _is_python(target):
            # Kept together by torch.fx.wrap for tracers that cannot look inside.
            return _opened(target)(*args, **kwargs)
        return super().create_proxy(kind, target, args, kwargs, *rest, **named)

    def value(self, node: fx.Node) -> Any:
        """What a node gives on meta tensors of the example's shape; `UNKNOWN` if it fails."""
        return self._runs[0].value(self.graph, node)

    def sizes(self, node: fx.Node) -> Sizes | None:
        """The shape that a node has now; a size that depends on the batch as one for each run.

        None if the calls up to here do not run at the batch sizes that are tried.
        """
        values = [run.value(self.graph, node) for run in self._runs]
        if not all(isinstance(value, Tensor) for value in values):
            return None
        if len({value.ndim for value in values}) > 1:
            return None
        sizes = zip(*(value.shape for value in values), strict=True)
        return tuple(size[0] if len(set(size)) == 1 else size for size in sizes)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self._modes:
            raise TouchedError("the model switches gradients or autocast, which tracing loses")
        node = super().create_node(*args, **kwargs)
        node.stack_trace = _user_frame()
        return node


class _ShadowRun:
    """The calls of a graph on meta tensors, at one batch size.

    Args:
        examples, batched: as for `trace`.
        size: the batch size; None for that of the examples.
        attribute: the tensor at a path, None if there is none.
    """

    def __init__(
        self,
        examples: Sequence[Tensor],
        batched: Sequence[bool],
        size: int | None,
        attribute: Callable[[str], Tensor | None],
    ) -> None:
        self._inputs = iter(
            without_data(item)
            if size is None or not dynamic
            else torch.empty((size, *item.shape[1:]), dtype=item.dtype, device="meta")
            for item, dynamic in zip(examples, batched, strict=True)
        )
        self._find = attribute
        self._own: dict[str, Any] = {}
        self._values: dict[fx.Node, Any] = {}
        self._last: fx.Node | None = None

    def value(self, graph: fx.Graph, node: fx.Node) -> Any:
        """What a node gives; `UNKNOWN` if it fails.

        Nothing runs before somebody asks; then all nodes so far do, in order, since a later
        write may have changed the shape.
        """
        with _disable_current_modes(), torch.device("meta"), torch.no_grad():
            following = self._last.next if self._last else next(iter(graph.nodes))
            while following.op != "root":
                self._values[following] = self._run(following)
                self._last, following = following, following.next
        return self._values[node]

    def _run(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return next(self._inputs)
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        key = targets.key_of(node)
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), self._values.__getitem__)
        if any(item is UNKNOWN for item in pytree.tree_leaves((args, kwargs))):
            return UNKNOWN
        try:
            args, kwargs = to_meta(key, args, dict(kwargs))
            return targets.function_of(node)(*args, **kwargs)
        except Exception:
            # The importer runs it again, and reports it.
            return UNKNOWN

    def _attribute(self, path: str) -> Any:
        """A copy for each run: a call may change its shape."""
        if path not in self._own:
            known = self._find(path)
            self._own[path] = UNKNOWN if known is None else without_data(known)
        return self._own[path]


def _as_number(item: Any) -> Any:
    """A fixed index of one number, as `fixed.argmax()` is, which is no tensor of indices."""
    index = type(item) is Tensor and item.dim() == 0 and item.dtype == torch.int64
    return int(item) if index and not item.is_meta else item


def _is_python(target: Any) -> bool:
    """Whether a call is of Python code that can be traced in its turn."""
    if not isinstance(target, FunctionType) or targets.find_lowering(target) is not None:
        return False
    return target in _OPENED or target.__module__.partition(".")[0] != "torch"


def _opened(target: FunctionType) -> Callable[..., Any]:
    """The function's own body, also where torch would ask the arguments to run it instead."""
    if target not in _OPENED:
        return target
    names = {**target.__globals__, "has_torch_function": lambda tensors: False}
    opened = FunctionType(
        target.__code__, names, target.__name__, target.__defaults__, target.__closure__
    )
    opened.__kwdefaults__ = target.__kwdefaults__
    return opened


def _user_frame() -> str | None:
    """The innermost frame of the model's own code, in the form of a traceback line.

    fx can record whole traces, but formatting them imports torch's compiler stack, which
    takes seconds the first time.
    """
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if frame.f_globals.get("__name__", "").startswith("boundgraph.cli"):
            # What called the command line is no model's code.
            return None
        if not is_library(code.co_filename):
            return f'File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}\n'
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _modes() -> tuple[bool, ...]:
    autocast = (torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    return torch.is_grad_enabled(), *autocast
