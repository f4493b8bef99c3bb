"""Evaluate a program node by node: the reference that emission is compared with.

The same walk serves `emit`, which passes proxies instead of tensors; only where values
come from differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.errors import InternalError
from boundgraph.ir.program import Node, Program, Value
from boundgraph.ir.types import Dim, IntervalType, SymbolicType
from boundgraph.ops import bounded

Lookup = Callable[[str], Any]


def interpret(
    program: Program,
    inputs: Sequence[Tensor | Interval],
    lookup: Lookup,
    *,
    on_node: Callable[[Node, Any], None] | None = None,
) -> tuple[Any, ...]:
    """Run a program.

    Args:
        program: any stage.
        inputs: one per program input; `Interval` where the input's type is an interval.
        lookup: parameter path to tensor.
        on_node: called with each node and its result, e.g. to record bounds.

    Returns:
        One value per program output: a tensor, `Interval` or `Symbolic`.
    """
    if len(inputs) != len(program.inputs):
        raise InternalError(f"{len(inputs)} inputs given, the program takes {len(program.inputs)}")
    values: dict[str, Any] = {}
    for value, given in zip(program.inputs, inputs, strict=True):
        values[str(value)] = given
    for param in program.params:
        values[str(param)] = lookup(param.name)
    sizes = DimSizes(program, values)
    for node in program.nodes:
        result = run_node(node, values, sizes)
        values[str(node.result)] = result
        if on_node is not None:
            on_node(node, result)
    return tuple(values[str(output)] for output in program.outputs)


def run_node(node: Node, values: Mapping[str, Any], sizes: DimSizes) -> Any:
    """Apply a node's rule to the values of its operands."""
    rule = bounded.rule(node.op)
    attrs = {key: sizes.resolve(value) for key, value in node.attrs.items()}
    return rule(*(values[str(value)] for value in node.inputs), **attrs)


class DimSizes:
    """Dynamic sizes of one run, read off the inputs when first needed."""

    def __init__(self, program: Program, values: Mapping[str, Any]) -> None:
        self._sources: dict[str, tuple[Value, int]] = {}
        for value in program.inputs:
            for position, entry in enumerate(value.type.shape):
                if isinstance(entry, Dim) and (entry.coeff, entry.offset) == (1, 0):
                    self._sources.setdefault(entry.symbol, (value, position))
        self._values = values
        self._known: dict[str, Any] = {}

    def resolve(self, attr: Any) -> Any:
        if isinstance(attr, tuple):
            return tuple(self.resolve(item) for item in attr)
        if not isinstance(attr, Dim):
            return attr
        size = self._symbol(attr.symbol)
        scaled = size if attr.coeff == 1 else size * attr.coeff
        return scaled + attr.offset if attr.offset else scaled

    def _symbol(self, symbol: str) -> Any:
        if symbol not in self._known:
            if symbol not in self._sources:
                raise InternalError(f"no input has the dynamic size {symbol!r}")
            value, position = self._sources[symbol]
            given = self._values[str(value)]
            tensor = given.any_part if isinstance(given, Interval) else given
            self._known[symbol] = tensor.shape[position]
        return self._known[symbol]


def is_bound_type(value: Value) -> bool:
    return isinstance(value.type, IntervalType | SymbolicType)
