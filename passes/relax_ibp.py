"""Interval bound propagation as a program transformation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from boundgraph import ops
from boundgraph.errors import Diagnostic, UnsupportedError
from boundgraph.ir.program import Program, ProgramBuilder, Value
from boundgraph.ir.types import IntervalType, Stage
from boundgraph.ops.bounded import INTERVAL
from boundgraph.passes._balls import Balls, Norms
from boundgraph.passes._rounded import carry_rounding, sound_interval
from boundgraph.passes._unsupported import diagnose
from boundgraph.passes.manager import Effect, Pass


@dataclass(frozen=True)
class RelaxIBP(Pass):
    """Replace every value that depends on a bounded input by an interval.

    Values that do not depend on the region stay plain tensors.

    Args:
        bounded: names of the inputs that carry a region.
        sound: intervals account for rounding (`interval.sound.*`); then a plain value that
            rounds becomes an interval, too.
        norms: which of them are p-balls, and p.
        accurate: with `sound`, take long sums of centres in float64.
        executed: with `sound`, also contain what the network computes in its dtype.

    Source: Gowal et al., arXiv 1810.12715.

    Raises:
        UnsupportedError: lists every op that has no interval rule where it is used.
    """

    bounded: tuple[str, ...]
    sound: bool = False
    executed: bool = False
    norms: Norms = ()
    accurate: bool = False

    name: ClassVar[str] = "relax-ibp"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.RELAXES

    def run(self, program: Program) -> Program:
        builder = ProgramBuilder(Stage.BOUNDED)
        values: dict[str, Value] = {}
        problems: list[Diagnostic] = []
        for value in program.params:
            values[str(value)] = builder.param(value.name, value.type)
        for value in program.inputs:
            type_ = value.type
            if value.name in self.bounded:
                type_ = IntervalType(type_.dtype, type_.shape)
            values[str(value)] = builder.input(value.name, type_)
        balls = Balls(self.norms, builder, self.sound)
        balls.add_inputs(program.inputs)
        for node in program.nodes:
            operands = [values[str(value)] for value in node.inputs]
            spec = ops.get(node.op)
            found: Diagnostic | None = None
            if self.sound and not any(isinstance(v.type, IntervalType) for v in operands):
                operands, found = carry_rounding(builder, node, spec, operands)
            positions = [
                i for i, operand in enumerate(operands) if isinstance(operand.type, IntervalType)
            ]
            op, type_, attrs = node.op, node.result.type, node.attrs
            if positions:
                rejected = [i for i in positions if spec is None or not spec.accepts(i)]
                if spec is None or spec.interval is None or rejected:
                    problems.append(diagnose(node, spec, rejected or positions))
                elif (
                    refined := balls.interval(node, spec, operands, wide=self.accurate)
                ) is not None:
                    values[str(node.result)] = refined
                    continue
                elif self.sound:
                    op, attrs, found = sound_interval(
                        node, spec, operands, executed=self.executed, wide=self.accurate
                    )
                op = op if op != node.op else INTERVAL + node.op
                type_ = IntervalType(type_.dtype, type_.shape)
            if found is not None:
                problems.append(found)
            values[str(node.result)] = builder.add(
                op, operands, type_, attrs, name=node.result.name, span=node.span
            )
        if problems:
            raise UnsupportedError(list(dict.fromkeys(problems)))
        return builder.build(values[str(output)] for output in program.outputs)
