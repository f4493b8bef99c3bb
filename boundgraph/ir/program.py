"""The program: typed, immutable, in static single assignment form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from boundgraph.ir.types import Stage, TensorType
from boundgraph.source import SourceSpan


@dataclass(frozen=True)
class Value:
    """A named, typed value. Within one program a name means one value.

    `param` values are read from the user's module by the dotted path in `name`;
    they print as `@path`, all others as `%name`.
    """

    name: str
    type: TensorType
    param: bool = False

    def __str__(self) -> str:
        return f"{'@' if self.param else '%'}{self.name}"


class Attrs(Mapping[str, Any]):
    """An immutable, hashable, ordered mapping of attribute names to plain values."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        pairs = items.items() if isinstance(items, Mapping) else items
        self._items = tuple((key, _freeze(value)) for key, value in pairs)

    def __getitem__(self, key: str) -> Any:
        for name, value in self._items:
            if name == key:
                return value
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(_identity(self._items))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attrs) and _identity(self._items) == _identity(other._items)

    def __repr__(self) -> str:
        return f"Attrs({dict(self._items)!r})"


def _identity(value: Any) -> Any:
    """A key that tells 1, 1.0 and True, or 0.0 and -0.0, apart, and finds nan equal to nan."""
    if isinstance(value, tuple):
        return tuple(_identity(item) for item in value)
    return type(value), value.hex() if isinstance(value, float) else value


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Node:
    """One operation with one result. `span` is where the user wrote it; it never compares."""

    result: Value
    op: str
    inputs: tuple[Value, ...] = ()
    attrs: Attrs = field(default_factory=Attrs)
    span: SourceSpan | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Program:
    """Inputs, parameters read, nodes in execution order, outputs."""

    inputs: tuple[Value, ...]
    params: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    stage: Stage = Stage.CONCRETE

    def __str__(self) -> str:
        from boundgraph.ir.printer import print_program

        return print_program(self)

    def producers(self) -> dict[str, Node]:
        """Node by the name of its result."""
        return {node.result.name: node for node in self.nodes}

    def users(self) -> dict[str, list[Node]]:
        """Nodes that read a value, by the value's text (`%x`, `@weight`)."""
        table: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                table.setdefault(str(value), []).append(node)
        return table

    def with_nodes(self, nodes: Iterable[Node], **changes: Any) -> Program:
        return replace(self, nodes=tuple(nodes), **changes)


class ProgramBuilder:
    """Builds a program node by node and keeps the names unique."""

    def __init__(self, stage: Stage = Stage.CONCRETE) -> None:
        self.stage = stage
        self._inputs: list[Value] = []
        self._params: dict[str, Value] = {}
        self._nodes: list[Node] = []
        self._names: set[str] = set()

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(self._nodes)

    def fresh_name(self, hint: str) -> str:
        name, count = hint, 0
        while name in self._names:
            count += 1
            name = f"{hint}_{count}"
        self._names.add(name)
        return name

    def input(self, name: str, type_: TensorType) -> Value:
        value = Value(self.fresh_name(name), type_)
        self._inputs.append(value)
        return value

    def param(self, path: str, type_: TensorType) -> Value:
        value = Value(path, type_, param=True)
        return self._params.setdefault(path, value)

    def add(
        self,
        op: str,
        inputs: Iterable[Value],
        type_: TensorType,
        attrs: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        span: SourceSpan | None = None,
    ) -> Value:
        hint = name or op.rsplit(".", 1)[-1]
        result = Value(self.fresh_name(hint), type_)
        self._nodes.append(Node(result, op, tuple(inputs), Attrs(attrs or {}), span))
        return result

    def build(self, outputs: Iterable[Value]) -> Program:
        return Program(
            tuple(self._inputs),
            tuple(self._params.values()),
            tuple(self._nodes),
            tuple(outputs),
            self.stage,
        )
