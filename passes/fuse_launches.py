"""Fewer, wider products in a bounded program, for devices where a launch costs more than bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from boundgraph.ir.program import Node, Program, Value
from boundgraph.ir.rewrite import RewriteContext, RewriteRule, rewrite_program
from boundgraph.ir.types import IntervalType, Stage
from boundgraph.ops.bounded import INTERVAL
from boundgraph.passes.manager import Effect, Pass


def _interval_matrix(value: Value) -> bool:
    return isinstance(value.type, IntervalType) and len(value.type.shape) == 2


@dataclass(frozen=True)
class PairProducts(Pass):
    """Both products of an interval through a linear layer become one batched product.

    x·Wᵀ and r·|W|ᵀ are independent and of one shape. Stacked they are one launch instead of
    two, and so is each of their gradients: three launches saved per layer. The price is that
    W is written once more, beside |W|.

    Args:
        largest: elements of a weight up to which that pays. At 3 TB/s and 2 µs for a launch
            the copy, and its gradient, cost what three launches do at about 2 million.
    """

    largest: int = 1 << 20

    name: ClassVar[str] = "pair-products"
    stage: ClassVar[Stage] = Stage.BOUNDED
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, program: Program) -> Program:
        return rewrite_program(program, (RewriteRule(f"{INTERVAL}linear", self._pair),))

    def _pair(self, node: Node, ctx: RewriteContext) -> Value | None:
        x, weight = node.inputs[:2]
        sizes = [size for size in weight.type.shape if isinstance(size, int)]
        if not _interval_matrix(x) or len(sizes) != 2 or math.prod(sizes) > self.largest:
            return None
        if any(isinstance(value.type, IntervalType) for value in node.inputs[1:]):
            return None
        return ctx.add(f"{INTERVAL}linear_pair", node.inputs, node.result.type)


@dataclass(frozen=True)
class MarginProduct(Pass):
    """Lower margins through the last layer become one product: [c, r]·[D, −|D|]ᵀ.

    D holds the rows W_y − W_j, so that D·c − |D|·r is the lower end itself. One launch
    instead of two forward, two instead of four backward. Upper ends are not computed and
    are infinite: for programs of which only lower margins are read, as in training.

    Args:
        classes: up to this many; beyond, the second product of C² rows costs more arithmetic
            than its launch.
    """

    classes: int = 16

    name: ClassVar[str] = "margin-product"
    stage: ClassVar[Stage] = Stage.BOUNDED
    effect: ClassVar[Effect] = Effect.RELAXES

    def run(self, program: Program) -> Program:
        return rewrite_program(program, (RewriteRule(f"{INTERVAL}linear_margin", self._merge),))

    def _merge(self, node: Node, ctx: RewriteContext) -> Value | None:
        classes, outputs = node.attrs["classes"], ctx.users(node.result)
        x, others = node.inputs[0], node.inputs[1:]
        if classes > self.classes or outputs != 1 or not _interval_matrix(x):
            return None
        if any(isinstance(value.type, IntervalType) for value in others):
            return None
        attrs = {"classes": classes}
        return ctx.add(f"{INTERVAL}linear_margin_lower", node.inputs, node.result.type, attrs)
