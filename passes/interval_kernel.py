"""Linear layers and the relu behind them as one kernel, where a model says that it wins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from boundgraph.ir.program import Node, Program, Value
from boundgraph.ir.rewrite import RewriteContext, RewriteRule, rewrite_program
from boundgraph.ir.types import IntervalType, Stage
from boundgraph.ops.bounded import INTERVAL
from boundgraph.passes.manager import Effect, Pass

# Of an H100: bytes per second, float32 FLOP per second, processors, seconds of a launch.
_BANDWIDTH, _PEAK, _PROCESSORS, _LAUNCH = 3.35e12, 67e12, 132, 2e-6
# Rows and columns of a tile, and the share of a processor's peak that its products are taken
# to reach. Assumed, not measured.
_TILES = ((64, 64, 0.6), (16, 32, 0.3))


def kernel_seconds(batch: int, outputs: int, inputs: int) -> float:
    """Modelled time of the kernel: one launch, and each tile's sum on one processor."""
    moved = 4 * (2 * batch * inputs + outputs * inputs + 2 * batch * outputs)
    counts = [math.ceil(batch / rows) * math.ceil(outputs / columns) for rows, columns, _ in _TILES]
    large = counts[0] >= _PROCESSORS
    rows, columns, share = _TILES[0 if large else 1]
    waves = math.ceil(counts[0 if large else 1] / _PROCESSORS)
    each = 4 * rows * columns * inputs / (share * _PEAK / _PROCESSORS)
    return max(_LAUNCH, moved / _BANDWIDTH, waves * each)


def library_seconds(batch: int, outputs: int, inputs: int) -> float:
    """Modelled time without it: W beside |W|, one batched product, and a kernel for relu."""
    weights, x, y = outputs * inputs, 2 * batch * inputs, 2 * batch * outputs
    product = max(4 * (2 * weights + x + y) / _BANDWIDTH, 4 * batch * weights / _PEAK)
    return (
        max(_LAUNCH, 4 * (3 * weights + 2 * x) / _BANDWIDTH)
        + max(_LAUNCH, product)
        + max(_LAUNCH, 8 * y / _BANDWIDTH)
    )


@dataclass(frozen=True)
class IntervalKernel(Pass):
    """`interval.linear` and `interval.relu` become `interval.linear_relu`, one kernel.

    x·Wᵀ and r·|W|ᵀ in one pass over W, |W| never written, the relu before anything is
    stored. A library splits long sums over the processors of a GPU, the kernel does not, so
    it wins for few inputs only; by `kernel_seconds` against `library_seconds`.

    Args:
        batch: samples for which both are compared.
    """

    batch: int = 128

    name: ClassVar[str] = "interval-kernel"
    stage: ClassVar[Stage] = Stage.BOUNDED
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, program: Program) -> Program:
        return rewrite_program(program, (RewriteRule(f"{INTERVAL}relu", self._fuse),))

    def _fuse(self, node: Node, ctx: RewriteContext) -> Value | None:
        layer = ctx.producer(node.inputs[0])
        if layer is None or layer.op != f"{INTERVAL}linear" or ctx.users(layer.result) != 1:
            return None
        x, weight = layer.inputs[:2]
        sizes = [size for size in weight.type.shape if isinstance(size, int)]
        if not isinstance(x.type, IntervalType) or len(x.type.shape) != 2 or len(sizes) != 2:
            return None
        if any(isinstance(value.type, IntervalType) for value in layer.inputs[1:]):
            return None
        if x.type.dtype != "f32" or not self._wins(*sizes):
            return None
        return ctx.add(f"{INTERVAL}linear_relu", layer.inputs, node.result.type)

    def _wins(self, outputs: int, inputs: int) -> bool:
        return kernel_seconds(self.batch, outputs, inputs) < library_seconds(
            self.batch, outputs, inputs
        )
