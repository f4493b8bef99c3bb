"""Relaxation by a plan that is made for a time and memory budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from boundgraph.ir.program import Program
from boundgraph.ir.types import Stage
from boundgraph.passes._balls import Norms
from boundgraph.passes.manager import Effect, Pass
from boundgraph.passes.relax_backward import RelaxBackward
from boundgraph.passes.relax_ibp import RelaxIBP
from boundgraph.passes.relax_symbolic import RelaxSymbolic
from boundgraph.planning import MACHINES, Budget, Plan, Planned, make_plan
from boundgraph.planning.plan import DEFAULT_BYTES, DEFAULT_SECONDS, FORWARD, INTERVAL


@dataclass(frozen=True)
class RelaxPlanned(Pass):
    """Bounds as tight as a budget allows: the pass of another method, as the plan says.

    Args:
        bounded: names of the inputs that carry a region.
        batch: samples of a call, for the estimate.
        seconds, memory: what a call may take, by estimate.
        machine: key of `MACHINES`, nominal speeds.
        lower_only, sound, norms: as for `RelaxBackward`.
    """

    bounded: tuple[str, ...]
    batch: int = 1
    seconds: float = DEFAULT_SECONDS
    memory: int = DEFAULT_BYTES
    machine: str = "cpu"
    lower_only: bool = False
    sound: bool = False
    norms: Norms = ()

    name: ClassVar[str] = "relax-planned"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.RELAXES

    def plan(self, program: Program) -> Plan:
        """What `run` will do with this program."""
        what = Planned(
            self.bounded,
            self.batch,
            MACHINES[self.machine],
            lower_only=self.lower_only,
            sound=self.sound,
            balls=bool(self.norms),
        )
        return make_plan(program, what, Budget(self.seconds, self.memory))

    def chosen(self, program: Program) -> Pass:
        """The pass that the plan amounts to."""
        plan = self.plan(program)
        if plan.schedule == INTERVAL:
            return RelaxIBP(self.bounded, sound=self.sound, norms=self.norms)
        if plan.schedule == FORWARD:
            return RelaxSymbolic(self.bounded, mix=True, norms=self.norms)
        return RelaxBackward(
            self.bounded,
            intermediate=True,
            only=plan.tightened,
            meet=True,
            lower_only=self.lower_only,
            sound=self.sound,
            norms=self.norms,
        )

    def run(self, program: Program) -> Program:
        return self.chosen(program).run(program)
