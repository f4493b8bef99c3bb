"""Put a specification behind the model's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from boundgraph.errors import SpecError
from boundgraph.ir.program import Attrs, Node, Program, Value
from boundgraph.ir.types import Shape, Size, Stage, TensorType, numel
from boundgraph.passes.manager import Effect, Pass

LABELS = "labels"
MATRIX, OFFSET = "spec.matrix", "spec.offset"


def _single_output(program: Program) -> Value:
    if len(program.outputs) != 1:
        raise SpecError(
            f"a spec needs a model with one output tensor, this one returns {len(program.outputs)}"
        )
    return program.outputs[0]


def _unused(program: Program, name: str) -> str:
    taken = {value.name for value in program.inputs}
    taken |= {node.result.name for node in program.nodes}
    while name in taken:
        name += "_"
    return name


@dataclass(frozen=True)
class AttachMargin(Pass):
    """`logits` becomes `margin(logits, labels)`, with the labels a new last input.

    Args:
        classes: number of classes.
        others: the program has further outputs after the logits, which stay as they are.
    """

    classes: int
    others: bool = False

    name: ClassVar[str] = "attach-margin"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, program: Program) -> Program:
        logits = program.outputs[0] if self.others else _single_output(program)
        shape = logits.type.shape
        if len(shape) != 2 or shape[1] != self.classes:
            raise SpecError(
                f"Margin(classes={self.classes}) needs an output [batch, {self.classes}], "
                f"the model returns {logits.type}"
            )
        labels = Value(_unused(program, LABELS), TensorType("i64", shape[:1]))
        result = Value(_unused(program, "margin"), logits.type)
        node = Node(result, "margin", (logits, labels), Attrs({"classes": self.classes}))
        return program.with_nodes(
            (*program.nodes, node),
            inputs=(*program.inputs, labels),
            outputs=(result, *program.outputs[1:]),
        )


@dataclass(frozen=True)
class AttachOthers(Pass):
    """The margin without the label's own row: `other_classes(margin, labels)`."""

    name: ClassVar[str] = "attach-others"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, program: Program) -> Program:
        margin, labels = program.outputs[0], program.inputs[-1]
        batch, classes = margin.type.shape
        assert isinstance(classes, int)
        type_ = TensorType(margin.type.dtype, (batch, classes - 1))
        result = Value(_unused(program, "others"), type_)
        node = Node(result, "other_classes", (margin, labels), Attrs({"classes": classes}))
        outputs = (result, *program.outputs[1:])
        return program.with_nodes((*program.nodes, node), outputs=outputs)


@dataclass(frozen=True)
class AttachTracks(Pass):
    """The margin is returned twice, or its negative loss and the margin itself."""

    loss: bool

    name: ClassVar[str] = "attach-tracks"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, program: Program) -> Program:
        margin = _single_output(program)
        if not self.loss:
            return program.with_nodes(program.nodes, outputs=(margin, margin))
        type_ = TensorType(margin.type.dtype, margin.type.shape[:1])
        result = Value(_unused(program, "loss"), type_)
        nodes = (*program.nodes, Node(result, "negative_loss", (margin,)))
        return program.with_nodes(nodes, outputs=(result, margin))


@dataclass(frozen=True)
class AttachLinear(Pass):
    """The flattened output times a matrix (parameter `@spec.matrix`), plus an offset."""

    matrix: tuple[int, ...]
    offset: tuple[int, ...] | None

    name: ClassVar[str] = "attach-linear"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, program: Program) -> Program:
        output = _single_output(program)
        batch, *features = output.type.shape
        width = numel(tuple(features))
        if width != self.matrix[-1]:
            raise SpecError(
                f"LinearSpec has {self.matrix[-1]} columns, the model has {width} outputs a sample"
            )
        dtype = output.type.dtype
        nodes, value = list(program.nodes), output
        if len(features) != 1:
            value = Value(_unused(program, "flat"), TensorType(dtype, (batch, width)))
            nodes.append(Node(value, "reshape", (output,), Attrs({"shape": (batch, width)})))
        per_sample = len(self.matrix) == 3
        # A matrix for each sample has as many as the batch, whose size may be dynamic.
        matrix = Value(MATRIX, TensorType(dtype, self._sized(self.matrix, 3, batch)), param=True)
        params = [*program.params, matrix]
        result = Value(_unused(program, "rows"), TensorType(dtype, (batch, self.matrix[-2])))
        operands: tuple[Value, ...] = (value, matrix)
        if self.offset is not None:
            offset_type = TensorType(dtype, self._sized(self.offset, 2, batch))
            offset = Value(OFFSET, offset_type, param=True)
            params.append(offset)
            if not per_sample and len(self.offset) == 1:
                operands = (value, matrix, offset)
        nodes.append(Node(result, "batched_linear" if per_sample else "linear", operands))
        if self.offset is not None and len(operands) == 2:
            shifted = Value(_unused(program, "shifted_rows"), result.type)
            nodes.append(Node(shifted, "add", (result, offset)))
            result = shifted
        return program.with_nodes(nodes, params=tuple(params), outputs=(result,))

    def _sized(self, shape: tuple[int, ...], rank: int, batch: Size) -> Shape:
        return (batch, *shape[1:]) if len(shape) == rank else shape
