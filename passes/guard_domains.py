"""Functions with a domain in rounding-sound programs: where one may be left, nothing is bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from boundgraph import ops
from boundgraph.ir.program import Node, Program, ProgramBuilder, Value
from boundgraph.ir.types import Dim, Shape, Stage
from boundgraph.ops._sound import SOUND, SOUND_ATTRS
from boundgraph.ops.bounded import INTERVAL
from boundgraph.passes.manager import Effect, Pass


@dataclass(frozen=True)
class GuardDomains(Pass):
    """Make an output NaN where a function of its sample may be undefined in the region.

    Rounding outward turns NaN into an infinite end, as after an overflow, and a later clamp or
    sigmoid would make that finite: a network that computes NaN would be certified. So each
    function with a domain (`OpSpec.partial`) is asked whether its operand may leave it, and the
    answers meet the outputs at the end. Samples are asked apart where they are a dimension of
    dynamic size, together otherwise.
    """

    name: ClassVar[str] = "guard-domains"
    stage: ClassVar[Stage] = Stage.BOUNDED
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, program: Program) -> Program:
        partial = [node for node in program.nodes if _is_partial(node)]
        if not partial:
            return program
        builder = ProgramBuilder(program.stage)
        values: dict[str, Value] = {}
        for value in program.inputs:
            values[str(value)] = builder.input(value.name, value.type)
        for value in program.params:
            values[str(value)] = builder.param(value.name, value.type)
        asked: list[tuple[Value, Shape]] = []
        for node in program.nodes:
            operands = [values[str(value)] for value in node.inputs]
            values[str(node.result)] = builder.add(
                node.op, operands, node.result.type, node.attrs,
                name=node.result.name, span=node.span,
            )  # fmt: skip
            if _is_partial(node):
                asked.append((_ask(builder, node, operands[0]), operands[0].type.shape))
        outputs = [_kept(builder, values[str(value)], asked) for value in program.outputs]
        return builder.build(outputs)


def _is_partial(node: Node) -> bool:
    if not node.op.startswith(INTERVAL + SOUND):
        return False
    spec = ops.get(node.op.removeprefix(INTERVAL + SOUND))
    return spec is not None and spec.partial


def _ask(builder: ProgramBuilder, node: Node, operand: Value) -> Value:
    attrs: dict[str, Any] = {k: v for k, v in node.attrs.items() if k not in SOUND_ATTRS}
    attrs["function"] = node.op.removeprefix(INTERVAL + SOUND)
    name = f"{node.result.name}_defined"
    return builder.add(
        "interval.defined", (operand,), operand.type, attrs, name=name, span=node.span
    )


def _kept(builder: ProgramBuilder, out: Value, asked: list[tuple[Value, Shape]]) -> Value:
    own = _samples(out.type.shape)
    over: list[tuple[int, ...]] = []
    for _, shape in asked:
        batch = None if own is None else _samples(shape)
        over.append(tuple(i for i in range(len(shape)) if i != batch))
    spread = (
        None if own is None else tuple(-1 if i == own else 1 for i in range(len(out.type.shape)))
    )
    apart = tuple(len(dims) < len(shape) for dims, (_, shape) in zip(over, asked, strict=True))
    attrs = {"over": tuple(over), "apart": apart, "spread": spread}
    flags = [flag for flag, _ in asked]
    return builder.add("interval.kept", (out, *flags), out.type, attrs, name=f"{out.name}_kept")


def _samples(shape: Shape) -> int | None:
    """The dimension of the samples, where its size is dynamic and its own."""
    found = [
        i
        for i, entry in enumerate(shape)
        if isinstance(entry, Dim) and (entry.coeff, entry.offset) == (1, 0)
    ]
    return found[0] if len(found) == 1 else None
