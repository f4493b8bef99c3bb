"""Inputs that are p-balls: where they stay balls, and the ops that make use of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from boundgraph.errors import RegionError
from boundgraph.ir.program import Node, ProgramBuilder, Value
from boundgraph.ir.types import Dim, IntervalType, TensorType
from boundgraph.ops import OpSpec
from boundgraph.ops._ball import BALL
from boundgraph.ops._sound import SOUND
from boundgraph.ops.bounded import INTERVAL
from boundgraph.passes._rounded import sound_interval

Norms = tuple[tuple[str, float], ...]
CENTER, REACH = "_center", "_reach"
# They move or drop elements, and repeat none: the difference to the centre keeps its norm.
_MOVES = ("reshape", "permute", "slice", "select", "detach", "flip")


@dataclass(frozen=True)
class Ball:
    """A value that lies in a p-ball of each sample (dimension 0)."""

    center: Value
    reach: Value
    norm: float


@dataclass
class Balls:
    """The balls of one run of a pass, by the text of the concrete program's values.

    Args:
        norms: names of inputs and p of their balls; their centre and radius become further
            inputs of the program, after all others.
        builder: of the bounded program.
        sound: rules account for rounding.
    """

    norms: Norms
    builder: ProgramBuilder
    sound: bool = False
    found: dict[str, Ball] = field(default_factory=dict)

    def add_inputs(self, inputs: Sequence[Value]) -> None:
        norms = dict(self.norms)
        for value in inputs:
            if value.name in norms:
                type_ = value.type
                if any(isinstance(entry, Dim) for entry in type_.shape[1:]):
                    raise RegionError(
                        f"input {value.name!r} has its samples on another dimension than the "
                        "first; an LpBall needs them there"
                    )
                reach = TensorType(type_.dtype, (type_.shape[0],))
                self.found[str(value)] = Ball(
                    self.builder.input(value.name + CENTER, TensorType(type_.dtype, type_.shape)),
                    self.builder.input(value.name + REACH, reach),
                    norms[value.name],
                )

    def interval(
        self, node: Node, spec: OpSpec, operands: Sequence[Value], *, wide: bool = False
    ) -> Value | None:
        """The interval of a node whose first operand is a ball, where that is of use.

        A node that only moves elements hands the ball on and needs nothing here.

        Args:
            wide: with `sound`, take long sums of centres in float64.
        """
        ball = self.found.get(str(node.inputs[0])) if node.inputs else None
        if ball is None:
            return None
        if node.op in _MOVES and self._keeps_samples(node, spec):
            center = self.builder.add(
                node.op,
                (ball.center,),
                node.result.type,
                node.attrs,
                name=f"{node.result.name}{CENTER}",
                span=node.span,
            )
            self.found[str(node.result)] = Ball(center, ball.reach, ball.norm)
            return None
        bounded = [i for i, v in enumerate(operands) if isinstance(v.type, IntervalType)]
        if spec.row_norm is None or bounded != [0] or not self._keeps_samples(node, spec):
            return None
        type_, op, attrs = node.result.type, INTERVAL + BALL + node.op, dict(node.attrs)
        if self.sound:
            name, kept, problem = sound_interval(node, spec, operands, wide=wide)
            if problem is not None:
                return None
            op, attrs = name.replace(SOUND, SOUND + BALL, 1), dict(kept)
        return self.builder.add(
            op,
            (operands[0], ball.center, ball.reach, *operands[1:]),
            IntervalType(type_.dtype, type_.shape),
            attrs | {"norm": ball.norm, "rank": len(type_.shape)},
            name=f"{node.result.name}_interval",
            span=node.span,
        )

    def _keeps_samples(self, node: Node, spec: OpSpec) -> bool:
        if spec.batch is None:
            return False
        shapes = tuple(value.type.shape for value in node.inputs)
        dims = (0, *(None for _ in shapes[1:]))
        return spec.batch(dims, shapes, node.result.type.shape, **node.attrs) == 0
