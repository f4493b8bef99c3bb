"""Relaxation by a plan that is made for a time and memory budget."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from boundgraph.ir.program import Program, ProgramBuilder, Value
from boundgraph.ir.types import IntervalType, Stage
from boundgraph.passes._balls import Norms
from boundgraph.passes.decompose import DecomposeExtremes
from boundgraph.passes.manager import Effect, Pass
from boundgraph.passes.relax_backward import RelaxBackward
from boundgraph.passes.relax_ibp import RelaxIBP
from boundgraph.passes.relax_symbolic import RelaxSymbolic
from boundgraph.planning import MACHINES, Budget, Plan, Planned, cheaper_schedule, make_plan
from boundgraph.planning.plan import (
    BACKWARD,
    DEFAULT_BYTES,
    DEFAULT_SECONDS,
    FORWARD,
    INTERVAL,
    WINDOWS,
)


class Planning(Pass):
    """A pass that hands the program to another one, as a plan says."""

    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.RELAXES

    bounded: tuple[str, ...]
    batch: int
    machine: str
    lower_only: bool
    norms: Norms

    def question(self, *, sound: bool = False) -> Planned:
        """What a plan is asked for."""
        return Planned(
            self.bounded,
            self.batch,
            MACHINES[self.machine],
            lower_only=self.lower_only,
            sound=sound,
            balls=bool(self.norms),
        )

    @abstractmethod
    def plan(self, program: Program) -> Plan:
        """What `run` will do with this program; its text and types alone decide."""

    @abstractmethod
    def chosen(self, plan: Plan) -> Pass:
        """The pass that a plan amounts to."""

    def run(self, program: Program) -> Program:
        return self.chosen(self.plan(program)).run(program)


@dataclass(frozen=True)
class RelaxPlanned(Planning):
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

    def plan(self, program: Program) -> Plan:
        budget = Budget(self.seconds, self.memory)
        return make_plan(program, self.question(sound=self.sound), budget)

    def chosen(self, plan: Plan) -> Pass:
        if plan.schedule == INTERVAL:
            return RelaxIBP(self.bounded, sound=self.sound, norms=self.norms)
        if plan.schedule in (FORWARD, WINDOWS):
            windows = plan.schedule == WINDOWS
            return RelaxSymbolic(self.bounded, mix=True, norms=self.norms, windows=windows)
        return self._backward(plan.tightened)

    def run(self, program: Program) -> Program:
        plan = self.plan(program)
        found = self.chosen(plan).run(program)
        walked = any(task.choice == BACKWARD for task in plan.tasks)
        if plan.schedule in (FORWARD, WINDOWS) and walked:
            return _intersected(found, self._backward(()).run(program))
        return found

    def _backward(self, tightened: tuple[str, ...]) -> RelaxBackward:
        return RelaxBackward(
            self.bounded,
            intermediate=True,
            only=tightened,
            meet=True,
            lower_only=self.lower_only,
            sound=self.sound,
            norms=self.norms,
        )


def _intersected(first: Program, second: Program) -> Program:
    """Two bounded programs of one model, side by side, and the intersections of their outputs."""
    builder = ProgramBuilder(Stage.BOUNDED)
    inputs = {str(value): builder.input(value.name, value.type) for value in first.inputs}
    ends: list[list[Value]] = []
    for program in (first, second):
        table = dict(inputs)
        for value in program.params:
            table[str(value)] = builder.param(value.name, value.type)
        for node in program.nodes:
            table[str(node.result)] = builder.add(
                node.op,
                [table[str(value)] for value in node.inputs],
                node.result.type,
                node.attrs,
                name=node.result.name,
                span=node.span,
            )
        ends.append([table[str(value)] for value in program.outputs])
    outputs = [
        builder.add("interval.meet", (a, b), a.type, name=f"{a.name}_best")
        if isinstance(a.type, IntervalType) and isinstance(b.type, IntervalType)
        else a
        for a, b in zip(*ends, strict=True)
    ]
    return builder.build(outputs)


@dataclass(frozen=True)
class RelaxCheaper(Planning):
    """`symbolic` as is cheapest: forward, whole or on windows, or backward from the outputs.

    All give the same bounds up to rounding. Forward costs grow with the symbols (elements of
    the input and of every relaxed op), backward costs with the rows that are bounded.

    Args:
        bounded: names of the inputs that carry a region.
        batch: samples of a call, for the estimate.
        machine: key of `MACHINES`, nominal speeds.
        lower_only, norms: as for `RelaxBackward`.
    """

    bounded: tuple[str, ...]
    batch: int = 1
    machine: str = "cpu"
    lower_only: bool = False
    norms: Norms = ()

    name: ClassVar[str] = "relax-symbolic-cheaper"

    def plan(self, program: Program) -> Plan:
        return cheaper_schedule(DecomposeExtremes().run(program), self.question())

    def chosen(self, plan: Plan) -> Pass:
        if plan.schedule in (FORWARD, WINDOWS):
            windows = plan.schedule == WINDOWS
            return RelaxSymbolic(self.bounded, norms=self.norms, windows=windows)
        return symbolic_backward(self.bounded, self.lower_only, self.norms)

    def run(self, program: Program) -> Program:
        chosen = self.chosen(self.plan(program))
        # A symbolic rule bounds the difference itself, and with less cancellation.
        forward = isinstance(chosen, RelaxSymbolic)
        return chosen.run(program if forward else DecomposeExtremes().run(program))


def symbolic_backward(bounded: tuple[str, ...], lower_only: bool, norms: Norms) -> RelaxBackward:
    """The backward schedule of `symbolic`."""
    return RelaxBackward(bounded, lower_only=lower_only, norms=norms, parallel=True)
