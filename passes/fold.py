"""Exact rewrites that merge affine ops: the specification, linear pairs, batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from boundgraph.ir.program import Node, Program, Value
from boundgraph.ir.rewrite import RewriteContext, RewriteRule, rewrite_program
from boundgraph.ir.types import Stage, TensorType
from boundgraph.passes.manager import Effect, Pass

# Up to this many classes the C·C difference rows are formed once for the whole batch.
PAIRWISE_CLASSES = 32
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


def _alone(ctx: RewriteContext, value: Value, op: str) -> Node | None:
    """The node that makes `value`, if it is an `op` and nothing else reads the value."""
    node = ctx.producer(value)
    return node if node is not None and node.op == op and ctx.users(value) == 1 else None


def _bias(ctx: RewriteContext, node: Node) -> Value:
    """The offset of a linear node; zeros where it has none."""
    if len(node.inputs) == 3:
        return node.inputs[2]
    weight = node.inputs[1]
    type_ = TensorType(weight.type.dtype, weight.type.shape[:1])
    return ctx.add("zero_bias", (weight,), type_, name="zero_bias")


@dataclass(frozen=True)
class FoldSpec(Pass):
    """`margin(linear(x))` becomes `linear_margin(x)`: rows W_y − W_j instead of two bounds.

    Bounding the difference of two logits through one matrix keeps what they share.
    """

    name: ClassVar[str] = "fold-spec"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.TIGHTER

    def run(self, program: Program) -> Program:
        return rewrite_program(program, (RewriteRule("margin", self._fold),))

    def _fold(self, node: Node, ctx: RewriteContext) -> Value | None:
        logits, labels = node.inputs
        layer = _alone(ctx, logits, "linear")
        if layer is None or len(layer.inputs[0].type.shape) != 2:
            return None
        classes = node.attrs["classes"]
        operands = (layer.inputs[0], layer.inputs[1], _bias(ctx, layer), labels)
        attrs = {"classes": classes, "pairwise": classes <= PAIRWISE_CLASSES}
        return ctx.add("linear_margin", operands, node.result.type, attrs)


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Two linear layers in a row become one, where the product is no larger than the pair.

    |W₂W₁| ≤ |W₂||W₁|, so interval bounds can only get tighter.
    """

    name: ClassVar[str] = "fold-affine"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.TIGHTER

    def run(self, program: Program) -> Program:
        return rewrite_program(program, (RewriteRule("linear", self._fold),))

    def _fold(self, node: Node, ctx: RewriteContext) -> Value | None:
        inner = _alone(ctx, node.inputs[0], "linear")
        if inner is None:
            return None
        outer_weight, inner_weight = node.inputs[1], inner.inputs[1]
        rows, middle = outer_weight.type.shape
        columns = inner_weight.type.shape[1]
        sizes = (rows, middle, columns)
        if not all(isinstance(entry, int) for entry in sizes):
            return None
        if rows * columns > rows * middle + middle * columns:  # type: ignore[operator]
            return None
        dtype = outer_weight.type.dtype
        weight = ctx.add(
            "compose_weight",
            (outer_weight, inner_weight),
            TensorType(dtype, (rows, columns)),
            name="weight",
        )
        operands: tuple[Value, ...] = (inner.inputs[0], weight)
        if len(inner.inputs) == 3:
            parts = (outer_weight, inner.inputs[2], *node.inputs[2:])
            bias = ctx.add("compose_bias", parts, TensorType(dtype, (rows,)), name="bias")
            operands = (*operands, bias)
        else:
            operands = (*operands, *node.inputs[2:])
        return ctx.add("linear", operands, node.result.type)


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Batch normalisation after a convolution or linear layer scales that layer's rows.

    Both are affine and the second is diagonal, so |D||W| = |DW|: the bounds are the same. With
    statistics of a batch what cannot be merged becomes a product and a sum, which carry
    gradients to the statistics.

    Args:
        widest: inputs of a linear layer up to which statistics of a batch are merged: scaling
            a wider matrix, anew in each step, moves more memory than scaling its outputs.
        statistics: whether statistics of a batch are merged at all. Left out, the layer keeps
            its weight and can share a product with the clean batch.
    """

    widest: int = 1024
    statistics: bool = True

    name: ClassVar[str] = "fold-batchnorm"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, program: Program) -> Program:
        return rewrite_program(program, (RewriteRule("batch_norm", self._fold),))

    def _fold(self, node: Node, ctx: RewriteContext) -> Value | None:
        x, mean, _, *scale = node.inputs
        layer = ctx.producer(x)
        if layer is None or ctx.users(x) != 1 or not self._merges(layer, mean):
            return None if mean.param else self._apart(node, ctx)
        kernel = layer.inputs[1]
        factor = _channel_factor(node, ctx)
        weight = ctx.add("scale_rows", (kernel, factor), kernel.type, name="weight")
        shift = mean
        if len(layer.inputs) == 3:
            shift = ctx.add("sub", (mean, layer.inputs[2]), mean.type, name="shift")
        bias = _channel_offset(shift, factor, scale, ctx)
        return ctx.add(
            layer.op, (layer.inputs[0], weight, bias), node.result.type, dict(layer.attrs)
        )

    def _merges(self, layer: Node, mean: Value) -> bool:
        if not (mean.param or self.statistics):
            return False
        if layer.op in _CONVOLUTIONS:
            return True
        if layer.op != "linear" or len(layer.result.type.shape) != 2:
            return False
        columns = layer.inputs[1].type.shape[1]
        return mean.param or (isinstance(columns, int) and columns <= self.widest)

    def _apart(self, node: Node, ctx: RewriteContext) -> Value:
        """One product and one sum for each element: torch's own has no gradient for statistics."""
        x, mean, _, *scale = node.inputs
        factor = _channel_factor(node, ctx)
        x, shift = self._without_bias(x, mean, ctx)
        offset = _channel_offset(shift, factor, scale, ctx)
        shape = (*mean.type.shape, *(1,) * (len(x.type.shape) - 2))
        if len(shape) > 1:
            wide = TensorType(mean.type.dtype, shape)
            factor, offset = (
                ctx.add("reshape", (value,), wide, {"shape": shape}, name=f"{value.name}_wide")
                for value in (factor, offset)
            )
        scaled = ctx.add("mul", (x, factor), node.result.type, name="scaled")
        return ctx.add("add", (scaled, offset), node.result.type)

    def _without_bias(self, x: Value, mean: Value, ctx: RewriteContext) -> tuple[Value, Value]:
        """The layer without its bias, and the mean less the bias: one addition per channel."""
        layer = ctx.producer(x)
        if layer is None or ctx.users(x) != 1 or len(layer.inputs) < 3:
            return x, mean
        if layer.op not in (*_CONVOLUTIONS, "linear"):
            return x, mean
        bare = ctx.add(layer.op, layer.inputs[:2], x.type, dict(layer.attrs), name=x.name)
        return bare, ctx.add("sub", (mean, layer.inputs[2]), mean.type, name="shift")


def _channel_factor(node: Node, ctx: RewriteContext) -> Value:
    _, _, var, *scale = node.inputs
    operands = (var, *scale[:1])
    return ctx.add("batch_norm_scale", operands, var.type, dict(node.attrs), name="scale")


def _channel_offset(
    shift: Value, factor: Value, scale: Sequence[Value], ctx: RewriteContext
) -> Value:
    """bias − shift·factor of each channel."""
    offset = ctx.add("mul", (shift, factor), shift.type, name="offset")
    if len(scale) == 2:
        return ctx.add("sub", (scale[1], offset), shift.type, name="bias")
    return ctx.add("neg", (offset,), shift.type, name="bias")
