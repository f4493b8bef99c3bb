"""Dead code elimination and common subexpressions, as passes of either stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from boundgraph.ir.program import Program
from boundgraph.ir.rewrite import common_subexpressions, dead_code_elimination
from boundgraph.ir.types import Stage
from boundgraph.passes.manager import Effect, Pass


@dataclass(frozen=True)
class DeadCode(Pass):
    """Drop nodes whose result nothing reads."""

    name: ClassVar[str] = "dce"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, program: Program) -> Program:
        return dead_code_elimination(program)


@dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """Compute equal nodes once. Two equal values then share their symbols, too."""

    name: ClassVar[str] = "cse"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.TIGHTER

    def run(self, program: Program) -> Program:
        return common_subexpressions(program)


@dataclass(frozen=True)
class BoundedDeadCode(DeadCode):
    """Dead code elimination after the bounds have been inserted."""

    name: ClassVar[str] = "bounded-dce"
    stage: ClassVar[Stage] = Stage.BOUNDED


@dataclass(frozen=True)
class BoundedCommonSubexpressions(CommonSubexpressions):
    """Common subexpressions after the bounds have been inserted."""

    name: ClassVar[str] = "bounded-cse"
    stage: ClassVar[Stage] = Stage.BOUNDED
    effect: ClassVar[Effect] = Effect.EXACT
