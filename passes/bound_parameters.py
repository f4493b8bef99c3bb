"""Parameters as inputs, so that a region may be given for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from boundgraph.errors import Diagnostic, RegionError, UnsupportedError
from boundgraph.ir.program import Node, Program, ProgramBuilder, Value
from boundgraph.ir.types import Shape, Size, Stage, TensorType
from boundgraph.passes.manager import Effect, Pass

_HELP = (
    "weights and biases of linear layers, biases of convolutions, factors and terms of "
    "element-wise +, −, · can be regions"
)


@dataclass(frozen=True)
class ParametersAsInputs(Pass):
    """Read some parameters from inputs `[batch, *shape]`, one copy for each sample.

    A bound holds for each sample by itself, so each may have its own weights: the set of all
    of them contains the weights that the samples share. With a batch dimension a parameter is
    an input like others, and every rule keeps samples apart. A linear layer becomes a product
    of two bounded matrices.

    Args:
        paths: of the parameters in one group for each input (a shared parameter has several).

    Raises:
        UnsupportedError: an op reads a parameter where it cannot take a bound.
        RegionError: no input has a batch dimension, or nothing reads a parameter.
    """

    paths: tuple[tuple[str, ...], ...]

    name: ClassVar[str] = "parameters-as-inputs"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.RELAXES

    def run(self, program: Program) -> Program:
        if not program.inputs or not program.inputs[0].type.shape:
            raise RegionError("a region of a parameter needs a model whose input has a batch")
        run = _Run(program.inputs[0].type.shape[0])
        for value in program.inputs:
            run.values[str(value)] = run.builder.input(value.name, value.type)
        known = {value.name: value for value in program.params}
        for group in self.paths:
            run.add_parameter([known[path] for path in group if path in known], group)
        for value in program.params:
            if str(value) not in run.own:
                run.values[str(value)] = run.builder.param(value.name, value.type)
        for node in program.nodes:
            run.add_node(node)
        touched = [str(value) for value in program.outputs if str(value) in run.own]
        if touched:
            raise RegionError(f"{', '.join(touched)}: an output made of parameters alone")
        if run.problems:
            raise UnsupportedError(run.problems)
        return run.builder.build([run.values[str(value)] for value in program.outputs])


@dataclass
class _Run:
    """Values by their text in the old program; `own` are those with a copy for each sample."""

    batch: Size
    builder: ProgramBuilder = field(default_factory=ProgramBuilder)
    values: dict[str, Value] = field(default_factory=dict)
    own: dict[str, Value] = field(default_factory=dict)
    problems: list[Diagnostic] = field(default_factory=list)

    def add_parameter(self, values: list[Value], group: tuple[str, ...]) -> None:
        if not values:
            raise RegionError(
                f"no op reads the parameter {group[0]!r}, or only through something that was "
                "computed from it before: it cannot have a region"
            )
        type_ = values[0].type
        name = "parameter_" + group[0].replace(".", "_")
        made = self.builder.input(name, TensorType(type_.dtype, (self.batch, *type_.shape)))
        for value in values:
            self.own[str(value)] = made

    def add_node(self, node: Node) -> None:
        at = [i for i, value in enumerate(node.inputs) if str(value) in self.own]
        if not at:
            self._set(node, self._add(node.op, self._plain(node.inputs), node, node.attrs))
            return
        handle = _HANDLERS.get(node.op)
        if handle is None or not handle(self, node, at):
            which = ", ".join(str(node.inputs[i]) for i in at)
            self.problems.append(
                Diagnostic(f"`{node.op}` cannot read {which} as a region", node.span, _HELP)
            )
            self._set(node, self._add(node.op, node.inputs, node, node.attrs))

    # Handlers: False where the case is not covered.

    def linear(self, node: Node, at: list[int]) -> bool:
        x, weight, *bias = node.inputs
        if 0 in at or not self._batched(x):
            return False
        out, features = node.result.type.shape, x.type.shape[-1]
        if 1 not in at:
            self._shift(node, self._plain((x, weight)), bias[0])
            return True
        middle = out[1:-1]
        if not all(isinstance(entry, int) for entry in (*middle, features, out[-1])):
            return False
        count = math.prod(middle)  # type: ignore[arg-type]
        own = self.own[str(weight)]
        columns = self._make(
            "permute", (own,), (self.batch, features, out[-1]), node, {"dims": (0, 2, 1)}
        )
        rows = self._reshape(self.values[str(x)], (self.batch, count, features), node)
        product = self._make("matmul", (rows, columns), (self.batch, count, out[-1]), node)
        result = self._reshape(product, out, node)
        if bias:
            term = self._term(bias[0], out, node, last=len(out) - 1)
            result = self._make("add", (result, term), out, node)
        self._set(node, result)
        return True

    def convolution(self, node: Node, at: list[int]) -> bool:
        if at != [2] or not self._batched(node.inputs[0]):
            return False
        self._shift(node, self._plain(node.inputs[:2]), node.inputs[2], last=1)
        return True

    def elementwise(self, node: Node, at: list[int]) -> bool:
        """`+`, `−`, `·` with a parameter that broadcasts against the samples."""
        others = [value for i, value in enumerate(node.inputs) if i not in at]
        out = node.result.type.shape
        if len(at) != 1 or not self._batched(others[0]) or others[0].type.shape != out:
            return False
        shape = node.inputs[at[0]].type.shape
        if len(shape) > len(out) or (len(shape) == len(out) and shape[0] != 1):
            return False
        shape = shape[1:] if len(shape) == len(out) else shape
        own = self.own[str(node.inputs[at[0]])]
        wide = (self.batch, *(1,) * (len(out) - 1 - len(shape)), *shape)
        spread = self._spread(self._reshape(own, wide, node), out, node)
        operands = [spread if i in at else self.values[str(v)] for i, v in enumerate(node.inputs)]
        self._set(node, self._make(node.op, operands, out, node))
        return True

    def permute(self, node: Node, at: list[int]) -> bool:
        """A parameter that is turned before it is used keeps its copies apart."""
        dims: Any = node.attrs["dims"]
        shape = (self.batch, *node.result.type.shape)
        moved = {"dims": (0, *(dim + 1 for dim in dims))}
        own = self.own[str(node.inputs[0])]
        self.own[str(node.result)] = self._make("permute", (own,), shape, node, moved)
        return True

    # Parts.

    def _batched(self, value: Value) -> bool:
        shape = value.type.shape
        return str(value) in self.values and not value.param and shape[:1] == (self.batch,)

    def _shift(self, node: Node, operands: list[Value], bias: Value, last: int = -1) -> None:
        """The op without its bias, and the bias of each sample added."""
        out = node.result.type.shape
        product = self._make(node.op, operands, out, node, node.attrs)
        term = self._term(bias, out, node, last % len(out))
        self._set(node, self._make("add", (product, term), out, node))

    def _term(self, bias: Value, out: Shape, node: Node, last: int) -> Value:
        """A bias along one dimension of the result, of each sample or the same for all."""
        if str(bias) not in self.own:
            return self.values[str(bias)]
        lead, tail = (1,) * (last - 1), (1,) * (len(out) - 1 - last)
        shape = (self.batch, *lead, out[last], *tail)
        return self._spread(self._reshape(self.own[str(bias)], shape, node), out, node)

    def _reshape(self, value: Value, shape: Shape, node: Node) -> Value:
        if value.type.shape == shape:
            return value
        return self._make("reshape", (value,), shape, node, {"shape": shape})

    def _spread(self, value: Value, shape: Shape, node: Node) -> Value:
        if value.type.shape == shape:
            return value
        return self._make("expand", (value,), shape, node, {"shape": shape})

    def _plain(self, values: tuple[Value, ...]) -> list[Value]:
        return [self.values[str(value)] for value in values]

    def _make(self, op: str, operands: Any, shape: Shape, node: Node, attrs: Any = None) -> Value:
        type_ = TensorType(node.result.type.dtype, shape)
        return self.builder.add(op, operands, type_, attrs or {}, name=op, span=node.span)

    def _add(self, op: str, operands: Any, node: Node, attrs: Any) -> Value:
        return self.builder.add(
            op, operands, node.result.type, attrs, name=node.result.name, span=node.span
        )

    def _set(self, node: Node, value: Value) -> None:
        self.values[str(node.result)] = value


_HANDLERS: dict[str, Callable[[_Run, Node, list[int]], bool]] = {
    "linear": _Run.linear,
    "permute": _Run.permute,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _Run.convolution),
    **dict.fromkeys(("add", "sub", "mul"), _Run.elementwise),
}
