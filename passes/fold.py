"""Exact rewrites that merge affine ops: the specification, linear pairs, batch normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from boundgraph.ir.program import Node, Program, Value
from boundgraph.ir.rewrite import RewriteContext, RewriteRule, rewrite_program
from boundgraph.ir.types import Stage, TensorType
from boundgraph.passes.manager import Effect, Pass

# Up to this many classes the C·C difference rows are formed once for the whole batch.
PAIRWISE_CLASSES = 32


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

    Both are affine and the second is diagonal, so |D||W| = |DW|: the bounds are the same.
    """

    name: ClassVar[str] = "fold-batchnorm"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, program: Program) -> Program:
        return rewrite_program(program, (RewriteRule("batch_norm", self._fold),))

    def _fold(self, node: Node, ctx: RewriteContext) -> Value | None:
        x, mean, var, *scale = node.inputs
        layer = ctx.producer(x)
        foldable = ("conv1d", "conv2d", "conv3d", "linear")
        if layer is None or layer.op not in foldable or ctx.users(x) != 1:
            return None
        if layer.op == "linear" and len(x.type.shape) != 2:
            return None
        kernel = layer.inputs[1]
        factor = ctx.add(
            "batch_norm_scale", (var, *scale[:1]), var.type, dict(node.attrs), name="scale"
        )
        weight = ctx.add("scale_rows", (kernel, factor), kernel.type, name="weight")
        shift = mean
        if len(layer.inputs) == 3:
            shift = ctx.add("sub", (mean, layer.inputs[2]), mean.type, name="shift")
        offset = ctx.add("mul", (shift, factor), mean.type, name="offset")
        if len(scale) == 2:
            bias = ctx.add("sub", (scale[1], offset), mean.type, name="bias")
        else:
            bias = ctx.add("neg", (offset,), mean.type, name="bias")
        return ctx.add(
            layer.op, (layer.inputs[0], weight, bias), node.result.type, dict(layer.attrs)
        )
