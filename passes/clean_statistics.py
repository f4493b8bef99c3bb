"""Batch normalisation in training mode: bound it with the statistics of the clean batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from boundgraph.ir.program import Attrs, Node, Program, Value
from boundgraph.ir.types import Dim, Stage, TensorType
from boundgraph.passes.manager import Effect, Pass

CLEAN_SUFFIX = "_clean"


@dataclass(frozen=True)
class CleanStatistics(Pass):
    """Give the program a second, clean copy of its inputs and take BatchNorm statistics there.

    The bound that follows treats those statistics as constants of the perturbation: it
    encloses what the network computes when it normalises with the clean batch's mean and
    variance, as certified training does (Shi et al., arXiv 2103.17268). Gradients flow
    through the statistics. The clean batch may have another size than the bounded one.

    Args:
        symbol: the clean batch's size.
        keep: the clean outputs become outputs, too, and after them the mean and unbiased
            variance of each normalisation, in order: all that a separate clean pass of the
            model would give.
        always: also where nothing normalises, because other inputs than x are shared.
    """

    symbol: str = "n"
    keep: bool = False
    always: bool = False

    name: ClassVar[str] = "clean-statistics"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.RELAXES

    def run(self, program: Program) -> Program:
        normalizes = any(node.op == "batch_norm_train" for node in program.nodes)
        if not normalizes and not self.always:
            return program
        clean: dict[str, Value] = {}
        inputs = []
        for value in program.inputs:
            inputs.append(self._rename(value))
            clean[str(value)] = inputs[-1]
        nodes: list[Node] = []
        for node in program.nodes:
            nodes.append(
                Node(
                    self._rename(node.result),
                    node.op,
                    tuple(clean.get(str(value), value) for value in node.inputs),
                    Attrs((key, self._attr(value)) for key, value in node.attrs.items()),
                    node.span,
                )
            )
            clean[str(node.result)] = nodes[-1].result
        kept = [clean.get(str(output), output) for output in program.outputs]
        for node in program.nodes:
            nodes.extend(self._with_statistics(node, clean))
            if node.op == "batch_norm_train":
                kept += [nodes[-4].result, nodes[-2].result]
        outputs = (*program.outputs, *kept) if self.keep else program.outputs
        return program.with_nodes(nodes, inputs=(*program.inputs, *inputs), outputs=outputs)

    def _with_statistics(self, node: Node, clean: dict[str, Value]) -> list[Node]:
        if node.op != "batch_norm_train":
            return [node]
        x, *scale = node.inputs
        type_ = TensorType(x.type.dtype, x.type.shape[1:2])
        mean = Value(f"{node.result.name}_mean", type_)
        var = Value(f"{node.result.name}_var", type_)
        unbiased = Value(f"{node.result.name}_unbiased", type_)
        source = clean[str(x)]
        shape = source.type.shape
        dims = Attrs({"dims": tuple(dim for dim in range(len(shape)) if dim != 1)})
        sizes = Attrs({"sizes": (*shape[:1], *shape[2:])})
        return [
            Node(mean, "batch_mean", (source,), dims, node.span),
            Node(var, "batch_var", (source,), dims, node.span),
            Node(unbiased, "unbiased_var", (var,), sizes, node.span),
            Node(node.result, "batch_norm", (x, mean, var, *scale), node.attrs, node.span),
        ]

    def _rename(self, value: Value) -> Value:
        shape = tuple(self._attr(entry) for entry in value.type.shape)
        return Value(value.name + CLEAN_SUFFIX, TensorType(value.type.dtype, shape))

    def _attr(self, attr: Any) -> Any:
        if isinstance(attr, tuple):
            return tuple(self._attr(item) for item in attr)
        return Dim(self.symbol, attr.coeff, attr.offset) if isinstance(attr, Dim) else attr
