"""Turn a program into a plain `torch.fx.GraphModule`.

Each node's rule is run once on fx proxies, which records the torch calls that it makes.
Nothing of ours remains in the result: it is tensor code over the user's own parameters,
reached as `model.<path>`, so autograd, `torch.compile`, `torch.export` and DDP see what
they always see.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm
from boundgraph.domains.symbolic import Symbolic
from boundgraph.errors import InternalError
from boundgraph.ir.program import Program
from boundgraph.ir.types import IntervalType
from boundgraph.ops._sharing import sharing
from boundgraph.runtime.interpret import DimSizes, run_node

MODEL, CONSTANTS = "model", "constants"


class ConstantTable(nn.Module):
    """Constants that do not live on the user's model, as buffers that follow `.to()`.

    They are not persistent: a constant belongs to the compiled program, not to weights.
    """

    def __init__(self, constants: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._paths = {path: f"c{index}" for index, path in enumerate(constants)}
        for path, tensor in constants.items():
            self.register_buffer(self._paths[path], tensor, persistent=False)

    def target(self, path: str) -> str | None:
        """Attribute name of a constant, or None where the path is on the model."""
        return self._paths.get(path)

    def tensors(self) -> dict[str, Tensor]:
        return {path: getattr(self, name) for path, name in self._paths.items()}


class _Holder(nn.Module):
    """Gives fx one root that reaches the model and the constants."""

    def __init__(self, model: nn.Module, constants: ConstantTable) -> None:
        super().__init__()
        self.model = model
        self.constants = constants


def emit(program: Program, model: nn.Module, constants: ConstantTable) -> fx.GraphModule:
    """Emit a program as a GraphModule that shares the model's parameters.

    Args:
        program: any stage. An interval input becomes two placeholders, lower and upper.
        model: the captured model; it is referenced, not copied, and not changed.
        constants: tensors for parameter paths that are not on the model.

    Returns:
        A module whose outputs are, per program output, a tensor or `(lower, upper)` or,
        for a symbolic value, `(center, {block: generators})`.
    """
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    values: dict[str, Any] = {}
    for value in program.inputs:
        if isinstance(value.type, IntervalType):
            ends = [graph.placeholder(f"{value.name}_{end}") for end in ("lower", "upper")]
            lower, upper = (_tensor(fx.Proxy(end, tracer)) for end in ends)
            values[str(value)] = Interval(lower, upper)
        else:
            values[str(value)] = fx.Proxy(graph.placeholder(value.name), tracer)
    for param in program.params:
        name = constants.target(param.name)
        target = f"{CONSTANTS}.{name}" if name else f"{MODEL}.{param.name}"
        values[str(param)] = fx.Proxy(graph.get_attr(target), tracer)
    sizes = DimSizes(program, values)
    with sharing():
        for node in program.nodes:
            before = len(graph.nodes)
            values[str(node.result)] = run_node(node, values, sizes)
            # From the end: a list of the whole graph for each node would be quadratic.
            new = len(graph.nodes) - before if node.span else 0
            for emitted in islice(reversed(graph.nodes), new):
                emitted.meta["bg_origin"] = (node.result.name, node.span)
    graph.output(tuple(_leaves(values[str(output)]) for output in program.outputs))
    merge_equal_calls(graph)
    graph.eliminate_dead_code()
    graph.lint()
    module = fx.GraphModule(_Holder(model, constants), graph, class_name="BoundedGraph")
    # fx copies the attributes it reads into stand-in modules; the real ones keep parameters
    # live when the user moves or reassigns them.
    module.model = model
    module.constants = constants
    return module


def _tensor(proxy: Any) -> Tensor:
    """A proxy as what it stands for."""
    return proxy


def _leaves(value: Any) -> Any:
    if isinstance(value, Interval):
        return _node(value.lower), _node(value.upper)
    if isinstance(value, Symbolic):
        return _node(value.center), {name: _node(part) for name, part in value.blocks.items()}
    if isinstance(value, LinearForm):
        return _node(value.coeff), None if value.offset is None else _node(value.offset)
    return _node(value)


def _node(value: Any) -> Any:
    if isinstance(value, fx.Proxy):
        return value.node
    raise InternalError(f"a program output is {type(value).__name__}, not a traced tensor")


def merge_equal_calls(graph: fx.Graph) -> None:
    """Keep one of several equal calls: |W| of a shared weight, end-to-centre conversions.

    Every call that emission records is pure, so equal calls have equal results.
    """
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "call_method", "get_attr"):
            continue
        key = (node.op, node.target, _key(node.args), _key(node.kwargs))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _key(arg: Any) -> Any:
    if isinstance(arg, list | tuple):
        return (type(arg).__name__, *map(_key, arg))
    if isinstance(arg, dict):
        return tuple((name, _key(value)) for name, value in arg.items())
    if isinstance(arg, slice):
        return ("slice", _key(arg.start), _key(arg.stop), _key(arg.step))
    # 1, 1.0 and True are equal to Python but not to torch; -0.0 equals 0.0.
    return (type(arg).__name__, repr(arg)) if isinstance(arg, float | int) else arg


def parameter_lookup(model: nn.Module, constants: ConstantTable) -> Any:
    """Resolve a parameter path for the interpreter."""

    def lookup(path: str) -> Tensor:
        name = constants.target(path)
        if name:
            return getattr(constants, name)
        found: Any = model
        for part in path.split("."):
            found = getattr(found, part)
        if not isinstance(found, torch.Tensor):
            raise InternalError(f"{path} is {type(found).__name__}, not a tensor")
        return found

    return lookup
