"""Adds canonical ops to a program on behalf of lowerings, and tidies the result."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any, NoReturn

import torch
from torch import Tensor

from boundgraph.errors import InternalError
from boundgraph.ir.program import Attrs, Node, Program, ProgramBuilder, Value
from boundgraph.ir.rewrite import dead_code_elimination
from boundgraph.ir.types import Shape, TensorType
from boundgraph.ops import get
from boundgraph.ops._dtypes import from_torch, to_torch
from boundgraph.ops._infer import infer_node, infer_type
from boundgraph.ops.constant import decode
from boundgraph.source import SourceSpan

CONSTANT = "_constant"


class Rejected(Exception):  # noqa: N818 - control flow, not an error
    """A lowering refused its call; the importer puts a stand-in in its place."""

    def __init__(self, message: str, help: str | None) -> None:
        super().__init__(message)
        self.message = message
        self.help = help


class Emitter:
    """The `Lowering` that captured calls are lowered through."""

    def __init__(self) -> None:
        self.span: SourceSpan | None = None
        self._builder = ProgramBuilder()
        self._dependent: set[str] = set()
        self._ops: dict[str, str] = {}
        self._calls: dict[str, tuple[str, tuple[Any, ...]]] = {}
        # Values that are all zeros, whatever the parameters hold.
        self._zeros: set[str] = set()
        self._constants: dict[str, Tensor] = {}
        self._by_identity: dict[int, Value] = {}

    def input(self, name: str, type_: TensorType) -> Value:
        value = self._builder.input(name, type_)
        self._dependent.add(str(value))
        return value

    def param(self, path: str, tensor: Tensor) -> Value:
        """A tensor of the user's model, by reference."""
        return self._builder.param(path, _type_of(tensor))

    def constant(self, tensor: Tensor) -> Value:
        """A tensor that is not on the model; the same tensor gives the same value."""
        known = self._by_identity.get(id(tensor))
        if known is not None:
            return known
        # Not a name that a model could use; `finish` gives the final one.
        path = f"#{len(self._constants)}"
        value = self._builder.param(path, _type_of(tensor))
        # Held here, so that its identity stays its own.
        self._constants[path] = tensor
        self._by_identity[id(tensor)] = value
        return value

    def emit(self, op: str, *inputs: Any, **attrs: Any) -> Value:
        if get(op) is None:
            raise InternalError(f"a lowering uses the op {op!r}, which is not registered")
        operands = tuple(self.tensor(value) for value in inputs)
        draft = Node(Value("", TensorType("f32", ())), op, operands, Attrs(attrs))
        type_ = infer_node(draft)
        if type_ is None:
            raise InternalError(f"the op {op!r} has no type rule")
        value = self._builder.add(op, operands, type_, attrs, name=_hint(op, attrs), span=self.span)
        self._ops[str(value)] = op
        if op == "call":
            self._calls[str(value)] = attrs["target"], decode(attrs["args"], operands)
        if any(map(self.depends, operands)):
            self._dependent.add(str(value))
        return value

    def op(self, value: Value) -> str | None:
        """The op that made a value; None for inputs and parameters."""
        return self._ops.get(str(value))

    def called(self, value: Value) -> tuple[str, tuple[Any, ...]] | None:
        return self._calls.get(str(value))

    def set_zero(self, value: Value) -> Value:
        self._zeros.add(str(value))
        return value

    def is_zero(self, value: Value) -> bool:
        return str(value) in self._zeros

    def shape(self, value: Value) -> Shape:
        return value.type.shape

    def dim(self, value: Value, dim: int, *, extra: int = 0) -> int:
        rank = len(value.type.shape) + extra
        # A scalar accepts dimension 0 and -1, as torch does.
        if not -max(rank, 1) <= dim < max(rank, 1):
            raise IndexError(f"dimension {dim} of a tensor with {rank} dimensions")
        return dim % max(rank, 1)

    def tensor(self, value: Any, like: Value | None = None) -> Value:
        if isinstance(value, Value):
            return value
        if isinstance(value, Tensor):
            return self.constant(value)
        if isinstance(value, bool | int | float):
            return self.constant(torch.tensor(value, dtype=_scalar_dtype(value, like)))
        raise TypeError(f"{type(value).__name__} is not a tensor or a number")

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, Value | Tensor)

    def depends(self, value: Any) -> bool:
        if isinstance(value, list | tuple):
            return any(map(self.depends, value))
        return isinstance(value, Value) and str(value) in self._dependent

    def broadcast(self, *values: Any) -> tuple[Value, ...]:
        like = next((value for value in values if isinstance(value, Value)), None)
        operands = tuple(self.tensor(value, like) for value in values)
        if not any(map(self.depends, operands)):
            return operands
        common = infer_type(_broadcast, [value.type for value in operands], {}).shape
        return tuple(
            self._expand(value, common) if self.depends(value) else value for value in operands
        )

    def _expand(self, value: Value, shape: Shape) -> Value:
        lead = len(shape) - len(value.type.shape)
        if lead:
            value = self.emit("reshape", value, shape=(1,) * lead + value.type.shape)
        return value if value.type.shape == shape else self.emit("expand", value, shape=shape)

    def reject(self, message: str, help: str | None = None) -> NoReturn:
        raise Rejected(message, help)

    def finish(self, outputs: tuple[Value, ...]) -> tuple[Program, dict[str, Tensor]]:
        """The program without dead code, named in order, and the constants that it reads."""
        return _tidy(dead_code_elimination(self._builder.build(outputs)), self._constants)


def _tidy(program: Program, constants: Mapping[str, Tensor]) -> tuple[Program, dict[str, Tensor]]:
    """Number values and constants by first use.

    What a model does decides its program's text, not which frontend captured it or how
    much of what was captured turned out to be dead.
    """
    builder = ProgramBuilder()
    renamed: dict[str, Value] = {}
    kept: dict[str, Tensor] = {}
    taken = {value.name for value in program.params}
    free = (path for i in count() if (path := f"{CONSTANT}_{i}") not in taken)

    def use(value: Value) -> Value:
        key = str(value)
        if key not in renamed:
            path = value.name
            if path in constants:
                path = next(free)
                kept[path] = constants[value.name]
            renamed[key] = builder.param(path, value.type)
        return renamed[key]

    for value in program.inputs:
        renamed[str(value)] = builder.input(value.name, value.type)
    for node in program.nodes:
        renamed[str(node.result)] = builder.add(
            node.op,
            map(use, node.inputs),
            node.result.type,
            node.attrs,
            name=_hint(node.op, node.attrs),
            span=node.span,
        )
    # Now: an output that is a parameter is declared by its use.
    outputs = tuple(map(use, program.outputs))
    return builder.build(outputs), kept


def _hint(op: str, attrs: Mapping[str, Any]) -> str | None:
    """A `call` is named after its function: `cumsum`, not `call`."""
    if op != "call":
        return None
    parts = str(attrs["target"]).split(".")
    return parts[1] if parts[0] not in ("torch", "operator") else parts[-1]


def _type_of(tensor: Tensor) -> TensorType:
    return TensorType(from_torch(tensor.dtype), tuple(tensor.shape))


def _broadcast(*operands: Tensor) -> Tensor:
    result: Tensor = torch.broadcast_tensors(*operands)[0]  # type: ignore[no-untyped-call]
    return result


def _scalar_dtype(value: float, like: Value | None) -> torch.dtype:
    if like is None:
        return torch.tensor(value).dtype
    # Beside a tensor, Python numbers take its dtype if it is of their kind.
    sample = torch.empty(1, dtype=to_torch(like.type.dtype), device="meta")
    return torch.result_type(sample, value)
