"""Types of results, found by running an op's own definition on meta tensors.

A dynamic size is probed at several values of its symbol and the results are fitted by
a line; a result that does not lie on one line has no type. Nothing is computed: meta
tensors have shapes and no data.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from boundgraph.errors import InternalError
from boundgraph.ir.program import Attrs, Node, Value
from boundgraph.ir.types import (
    Dim,
    FormType,
    IntervalType,
    Shape,
    Size,
    SymbolicType,
    TensorType,
    evaluate_shape,
    size,
)
from boundgraph.ops import _spec, bounded
from boundgraph.ops._ball import BALL, BALL_ATTRS
from boundgraph.ops._dtypes import from_torch, to_torch
from boundgraph.ops._sound import SOUND, SOUND_ATTRS
from boundgraph.ops._windowed import WINDOW_ATTRS, WINDOWS
from boundgraph.ops.bounded import BACKWARD, INTERVAL, SYMBOLIC

# Two sizes give the line; the third, far off, finds what is not one (`b*b`, `min(b, 100)`).
PROBES = (5, 7, 100_003)


def fit(symbol: str, values: Sequence[int], probes: Sequence[int] = PROBES) -> Size:
    """The size that has given values at the probes.

    Args:
        symbol: the symbol that was probed.
        values: one size for each probe.
        probes: the values of the symbol; with one probe the size is static.

    Raises:
        TypeError: when the values do not lie on one line with integer coefficients.
    """
    first = values[0]
    if all(value == first for value in values):
        return first
    coeff, rest = divmod(values[1] - first, probes[1] - probes[0])
    offset = first - coeff * probes[0]
    line = [coeff * probe + offset for probe in probes]
    if rest or line != list(values):
        points = ", ".join(f"{v} at {symbol}={p}" for p, v in zip(probes, values, strict=True))
        raise TypeError(f"a size is not linear in {symbol}: {points}")
    return size(symbol, coeff, offset)


def infer_type(
    concrete: Callable[..., Any], types: Sequence[TensorType], attrs: Mapping[str, Any]
) -> TensorType:
    """The type of `concrete(*operands, **attrs)`.

    Args:
        concrete: what the op computes.
        types: types of its operands.
        attrs: its attributes; a `Dim` in them takes the probed size.

    Raises:
        TypeError: when the result is no tensor or its shape is not linear in the symbol.
        Exception: whatever `concrete` raises on operands that it does not accept.
    """
    symbol = _symbol(types, attrs)
    if symbol is None:
        result = _run(concrete, types, attrs, {})
        return TensorType(from_torch(result.dtype), tuple(result.shape))
    results = [_run(concrete, types, attrs, {symbol: probe}) for probe in PROBES]
    if len({(result.dtype, result.ndim) for result in results}) > 1:
        raise TypeError(f"the dtype or the rank of the result depends on {symbol}")
    sizes = zip(*(result.shape for result in results), strict=True)
    return TensorType(from_torch(results[0].dtype), tuple(fit(symbol, entry) for entry in sizes))


def meta_tensor(type_: TensorType, sizes: dict[str, int]) -> Tensor:
    """A tensor of that type without data."""
    shape = evaluate_shape(type_.shape, sizes)
    return torch.empty(shape, dtype=to_torch(type_.dtype), device="meta")


def evaluate(value: Any, sizes: dict[str, int]) -> Any:
    """An attribute with its `Dim`s replaced by numbers."""
    if isinstance(value, Dim):
        return value.evaluate(sizes)
    if isinstance(value, tuple):
        return tuple(evaluate(item, sizes) for item in value)
    return value


def infer_node(node: Node) -> TensorType | None:
    """The type that a node's result must have, or None where no rule says."""
    if node.op in bounded.BOUND_ONLY:
        return _infer_bound_only(node)
    if node.op.startswith(BACKWARD):
        return _infer_backward(node)
    prefix = next((p for p in (INTERVAL, SYMBOLIC) if node.op.startswith(p)), "")
    operands, attrs, name = node.inputs, node.attrs, node.op.removeprefix(prefix)
    if prefix and name.startswith(SOUND):
        name = name.removeprefix(SOUND)
        attrs = Attrs((k, v) for k, v in attrs.items() if k not in SOUND_ATTRS)
    if prefix == SYMBOLIC and name.startswith(WINDOWS):
        name = name.removeprefix(WINDOWS)
        attrs = Attrs((k, v) for k, v in attrs.items() if k not in WINDOW_ATTRS)
    if prefix == INTERVAL and name.startswith(BALL):
        # The ball's centre and radius stand between the box and the other operands.
        name, operands = name.removeprefix(BALL), (operands[0], *operands[3:])
        attrs = Attrs((k, v) for k, v in attrs.items() if k not in BALL_ATTRS)
    spec = _spec.get(name)
    if spec is None:
        return None
    if prefix == INTERVAL and any(isinstance(v.type, SymbolicType) for v in operands):
        raise TypeError("an interval op reads a symbolic value that was not concretised")
    if prefix == SYMBOLIC and spec.relaxed and "block" in attrs:
        # The enclosing intervals follow the operands, one for each symbolic operand.
        operands = operands[: len(operands) - sum(_is_symbolic(value) for value in operands)]
        attrs = Attrs((k, v) for k, v in attrs.items() if k not in _BLOCK_ATTRS)
    types = tuple(TensorType(value.type.dtype, value.type.shape) for value in operands)
    found = _cached(spec.name, spec.concrete, types, attrs)
    if prefix == INTERVAL:
        return IntervalType(found.dtype, found.shape)
    return _symbolic(found, node) if prefix == SYMBOLIC else found


_BLOCK_ATTRS = ("block", "batch_dim", "features", "windows")


def _is_symbolic(value: Value) -> bool:
    return isinstance(value.type, SymbolicType)


def _symbolic(type_: TensorType, node: Node) -> SymbolicType:
    """The blocks that the rule will produce: those of the operands, then its own."""
    blocks = dict.fromkeys(
        block
        for value in node.inputs
        if isinstance(value.type, SymbolicType)
        for block in value.type.blocks
    )
    if "block" in node.attrs:
        blocks[node.attrs["block"]] = None
    return SymbolicType(type_.dtype, type_.shape, tuple(blocks))


def _infer_backward(node: Node) -> FormType:
    """Coefficients on the operand that the node walks to, for the same rows."""
    form = node.inputs[0].type
    shape = node.attrs["shapes"][node.attrs["operand"]]
    if not isinstance(form, FormType) or form.shape[1:] != node.attrs["target"]:
        raise TypeError(f"a backward op needs a form of its own result, got {form}")
    return FormType(form.dtype, (form.shape[0], *shape))


def _merged(types: Sequence[TensorType]) -> TensorType:
    """Forms of one value, for the same rows; a batch of 1 is shared by all samples."""
    widest = next((t for t in types if any(isinstance(e, Dim) for e in t.shape)), types[0])
    for type_ in types:
        pairs = zip(type_.shape, widest.shape, strict=True)
        if not isinstance(type_, FormType) or any(
            a != b and not (a == 1 and isinstance(b, Dim)) for a, b in pairs
        ):
            raise TypeError(f"backward.merge of {type_} and {widest}")
    return widest


def _rows(attrs: Attrs) -> Size:
    sizes = [size for dim, size in enumerate(attrs["shape"]) if dim != attrs["batch_dim"]]
    return math.prod(sizes)


_LINEAR = ("interval.linear_pair", "interval.linear_relu", "interval.linear_margin_lower")


def _infer_bound_only(node: Node) -> TensorType:
    type_, op = node.inputs[0].type, node.op.replace(SOUND, "", 1)
    if op in ("symbolic.fresh", "symbolic.ball"):
        return SymbolicType(type_.dtype, type_.shape, (node.attrs["block"],))
    if op == "symbolic.dense":
        return type_
    if op == "backward.seed":
        rows = _rows(node.attrs)
        return FormType(type_.dtype, (rows, *node.attrs["shape"]))
    if op == "backward.merge":
        # A sound merge also reads an interval of the value.
        return _merged([v.type for v in node.inputs if not isinstance(v.type, IntervalType)])
    if op == "backward.sign":
        return FormType(type_.dtype, (type_.shape[0] * 2, *type_.shape[1:]))
    if op == "backward.relu_rows":
        return type_
    if op == "backward.relu_step":
        if len(node.inputs) == 2:
            return type_
        channels, size = node.inputs[2].type.shape[1], node.attrs.get("size", ())
        return FormType(type_.dtype, (*type_.shape[:2], channels, *size))
    if op == "backward.assemble":
        return IntervalType(type_.dtype, node.attrs["shape"])
    if op == "interval.layer_step":
        return IntervalType(type_.dtype, (type_.shape[0], *node.attrs["features"]))
    if node.op in _LINEAR:
        return IntervalType(type_.dtype, (*type_.shape[:-1], node.inputs[1].type.shape[0]))
    if node.op in ("interval.meet", "interval.tighten") and not all(
        isinstance(value.type, IntervalType) for value in node.inputs
    ):
        raise TypeError(f"{node.op} needs two intervals")
    return IntervalType(type_.dtype, type_.shape)


@functools.lru_cache(maxsize=4096)
def _cached(
    name: str, concrete: Callable[..., Any], types: tuple[TensorType, ...], attrs: Attrs
) -> TensorType:
    if name == "unsupported":
        return TensorType(attrs["dtype"], attrs["shape"])
    return infer_type(concrete, types, attrs)


class RegistryTable:
    """What the verifier asks about ops, answered by the registry."""

    def known(self, op: str) -> bool:
        """Whether the op, or the op that a bounded op lifts, is registered with a rule for it."""
        return bounded.known(op)

    def infer(self, node: Node) -> TensorType | None:
        """The type of a node's result, from running the op on meta tensors."""
        return infer_node(node)

    def arity(self, op: str) -> tuple[int, int | None] | None:
        """Fewest and most operands, read off the signature of the op's definition."""
        spec = _spec.get(op)
        return _arity(spec.concrete) if spec is not None else None

    def source(self, op: str) -> bool:
        """Regions enter as inputs; a plain value becomes a bound only to carry its rounding."""
        return op == "interval.point"


def _arity(concrete: Callable[..., Any]) -> tuple[int, int | None] | None:
    if not inspect.isfunction(concrete):
        return None
    fewest, most = 0, 0
    for parameter in inspect.signature(concrete).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            return fewest, None
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            fewest += parameter.default is parameter.empty
            most += 1
    return fewest, most


def _symbol(types: Sequence[TensorType], attrs: Mapping[str, Any]) -> str | None:
    found = {symbol for type_ in types for symbol in _symbols(type_.shape)}
    found.update(symbol for value in attrs.values() for symbol in _symbols(value))
    if len(found) > 1:
        raise InternalError(f"an op with more than one dynamic size: {', '.join(sorted(found))}")
    return found.pop() if found else None


def _symbols(value: Shape | Any) -> set[str]:
    if isinstance(value, Dim):
        return {value.symbol}
    if isinstance(value, tuple):
        return {symbol for item in value for symbol in _symbols(item)}
    return set()


def _run(
    concrete: Callable[..., Any],
    types: Sequence[TensorType],
    attrs: Mapping[str, Any],
    sizes: dict[str, int],
) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        operands = [meta_tensor(type_, sizes) for type_ in types]
        result = concrete(
            *operands, **{key: evaluate(value, sizes) for key, value in attrs.items()}
        )
    if not isinstance(result, Tensor):
        raise TypeError(f"the op gives {type(result).__name__}, not a tensor")
    return result
