"""Symbolic intervals, alone or intersected with interval bounds, as a program transformation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from boundgraph import ops
from boundgraph.domains.balls import ball_block
from boundgraph.errors import Diagnostic, UnsupportedError
from boundgraph.ir.program import Node, Program, ProgramBuilder, Value
from boundgraph.ir.types import IntervalType, Shape, Stage, SymbolicType, TensorType
from boundgraph.ops import Kind, OpSpec
from boundgraph.ops._sound import SOUND
from boundgraph.ops._sound_symbolic import SYMBOLS, carries
from boundgraph.ops._sound_terms import attributes, precision_of, turns
from boundgraph.ops._windowed import WINDOWS, Layout, layout_after, own_layout, reads_flat
from boundgraph.ops.bounded import INTERVAL, SYMBOLIC
from boundgraph.passes._balls import Balls, Norms
from boundgraph.passes._rounded import computes_exactly, sound_interval, unsound
from boundgraph.passes._unsupported import diagnose, mixes_samples
from boundgraph.passes.manager import Effect, Pass


@dataclass(frozen=True)
class RelaxSymbolic(Pass):
    """Replace every value that depends on a bounded input by a symbolic interval.

    Affine ops act on centre and generators. A relaxed op first concretises its operand,
    then maps it through two parallel lines and adds one error symbol per element. An op
    without a symbolic rule is bounded as an interval and starts anew from it: sound, and
    as loose as an interval there.

    With `mix`, an interval track runs beside; both are intersected before every relaxed
    op and at the outputs, and the narrower interval feeds both tracks. Interval rules are
    monotone in their operands, so the result is never looser than `ibp`.

    Source: Wang et al., Neurify (arXiv 1809.08098), MixTrain (1811.02625); with parallel
    lines as in Fast-Lin (1804.09699) and DeepZ (Singh et al. 2018).

    Args:
        bounded: names of the inputs that carry a region.
        mix: run the interval track.
        keep: outputs stay symbolic, for users of the linear dependence.
        norms: which of the inputs are p-balls, and p: their symbols share the unit ball.
        sound: intervals and symbols account for rounding; an op whose symbolic rule has no
            rounding analysis starts anew from its interval.
        windows: generators of images are coefficients on windows until an op needs whole ones.
    """

    bounded: tuple[str, ...]
    mix: bool = False
    keep: bool = False
    norms: Norms = ()
    sound: bool = False
    windows: bool = False

    name: ClassVar[str] = "relax-symbolic"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.RELAXES

    def run(self, program: Program) -> Program:
        builder = ProgramBuilder(Stage.BOUNDED)
        run = _Run(self, builder, Balls(self.norms, builder))
        for value in program.params:
            run.plain[str(value)] = run.builder.param(value.name, value.type)
        for value in program.inputs:
            run.add_input(value)
        run.balls.add_inputs(program.inputs)
        for value in program.inputs:
            run.add_symbols(value)
        for node in program.nodes:
            run.add_node(node)
        if run.problems:
            raise UnsupportedError(list(dict.fromkeys(run.problems)))
        return run.builder.build([run.output(value) for value in program.outputs])


@dataclass
class _Run:
    """The tables of one run, keyed by the text of the concrete program's values."""

    options: RelaxSymbolic
    builder: ProgramBuilder
    balls: Balls
    plain: dict[str, Value] = field(default_factory=dict)
    symbolic: dict[str, Value] = field(default_factory=dict)
    track: dict[str, Value] = field(default_factory=dict)
    pre: dict[str, Value] = field(default_factory=dict)
    batch: dict[str, int | None] = field(default_factory=dict)
    problems: list[Diagnostic] = field(default_factory=list)
    symbols: dict[str, int] = field(default_factory=dict)
    layouts: dict[str, Layout] = field(default_factory=dict)

    def add_input(self, value: Value) -> None:
        if value.name not in self.options.bounded:
            self.plain[str(value)] = self.builder.input(value.name, value.type)
            return
        key, type_ = str(value), value.type
        interval = self.builder.input(value.name, IntervalType(type_.dtype, type_.shape))
        dynamic = [i for i, entry in enumerate(type_.shape) if not isinstance(entry, int)]
        self.batch[key] = dynamic[0] if dynamic else None
        self.track[key] = self.pre[key] = interval

    def add_symbols(self, value: Value) -> None:
        """The symbols of a bounded input, once all inputs stand."""
        key = str(value)
        if key not in self.track:
            return
        ball = self.balls.found.get(key)
        # The symbols of several samples that are not kept apart lie in a product of balls.
        if ball is None or not (self.batch[key] == 0 or value.type.shape[0] == 1):
            self.symbolic[key] = self._fresh(self.track[key], key, value.name, None)
            return
        name = ball_block(value.name, ball.norm)
        self.symbolic[key] = self._fresh(
            self.track[key], key, name, None, "symbolic.ball", (ball.center, ball.reach)
        )

    def add_node(self, node: Node) -> None:
        bounded = [i for i, value in enumerate(node.inputs) if str(value) in self.symbolic]
        if not bounded:
            if self.options.sound and not computes_exactly(node, ops.get(node.op)):
                self.problems.append(unsound(node, "it computes a constant with rounding"))
            self.plain[str(node.result)] = self.builder.add(
                node.op,
                [self.plain[str(value)] for value in node.inputs],
                node.result.type,
                node.attrs,
                name=node.result.name,
                span=node.span,
            )
            return
        spec = ops.get(node.op)
        rejected = [i for i in bounded if spec is None or not spec.accepts(i)]
        if spec is None or spec.interval is None or rejected:
            self.problems.append(diagnose(node, spec, rejected or bounded))
            self._give_up(node)
            return
        batch = self._batch(node, spec)
        if batch is None and any(self.batch.get(str(v)) is not None for v in node.inputs):
            self.problems.append(mixes_samples(node))
            self._give_up(node)
            return
        self.batch[str(node.result)] = batch
        linear = spec.symbolic is not None and (
            not spec.relaxed or (spec.kind is Kind.BILINEAR and len(bounded) == 1)
        )
        carried = spec.symbolic is not None and (
            not self.options.sound or carries(spec, not linear, node.attrs)
        )
        if linear and carried:
            self._linear(node)
        elif carried:
            self._relaxed(node, bounded)
        else:
            self._restart(node)

    def output(self, value: Value) -> Value:
        key = str(value)
        if key not in self.symbolic:
            return self.plain[key]
        return self._whole(value) if self.options.keep else self._interval(value)

    def _linear(self, node: Node) -> None:
        """Exact on the zonotope; no new symbols."""
        key = str(node.result)
        op, attrs = self._on_windows(node)
        operands = self._operands(node, whole=not attrs)
        blocks = dict.fromkeys(
            block
            for operand in operands
            if isinstance(operand.type, SymbolicType)
            for block in operand.type.blocks
        )
        self.symbolic[key] = self._add(
            SYMBOLIC + op, operands, node, tuple(blocks), dict(node.attrs) | attrs
        )
        if self.options.mix:
            tracks = [self.track.get(str(v)) or self.plain[str(v)] for v in node.inputs]
            self.track[key] = self._add_interval(node, tracks)

    def _relaxed(self, node: Node, bounded: list[int]) -> None:
        """Two lines and a fresh symbol per element."""
        key, type_ = str(node.result), node.result.type
        pre = [self._interval(node.inputs[i]) for i in bounded]
        features = self._features(type_.shape, self.batch[key], node)
        if features is None:
            self._give_up(node)
            return
        block = node.result.name
        self.symbols[block] = math.prod(features)
        windows = self._relaxed_on_windows(node, block, features)
        operands = self._operands(node, whole=not windows)
        blocks = dict.fromkeys(
            name
            for operand in operands
            if isinstance(operand.type, SymbolicType)
            for name in operand.type.blocks
        )
        attrs = dict(node.attrs) | {
            "block": block,
            "batch_dim": self.batch[key],
            "features": features,
            **windows,
        }
        self.symbolic[key] = self._add(
            SYMBOLIC + node.op, [*operands, *pre], node, (*blocks, block), attrs
        )
        if self.options.mix:
            narrowed = [self._interval_or_plain(value) for value in node.inputs]
            self.track[key] = self._add_interval(node, narrowed)

    def _operands(self, node: Node, *, whole: bool) -> list[Value]:
        """Symbolic where there is one, with whole generators if asked for."""
        return [
            self.plain[str(v)]
            if str(v) not in self.symbolic
            else self._whole(v)
            if whole
            else self.symbolic[str(v)]
            for v in node.inputs
        ]

    def _whole(self, value: Value) -> Value:
        """A symbolic value with whole generators, which most ops ask for."""
        key = str(value)
        if key in self.layouts:
            del self.layouts[key]
            old = self.symbolic[key]
            self._interval(value)
            self.symbolic[key] = self.builder.add(
                "symbolic.dense", [old], old.type, name=f"{value.name}_dense"
            )
        return self.symbolic[key]

    def _on_windows(self, node: Node) -> tuple[str, dict[str, object]]:
        """The op on windows and its attributes, or the op itself and none."""
        layouts = [self.layouts.get(str(value)) for value in node.inputs]
        spec, first = ops.get(node.op), layouts[0]
        shape = node.result.type.shape
        if first is not None and reads_flat(node, first):
            entries = first.temporaries(self.symbols)
            return WINDOWS + node.op, {"windows": entries, "features": shape[1:]}
        found = None if spec is None else layout_after(node, spec, layouts)
        if found is None or spec is None or spec.relaxed:
            return node.op, {}
        self.layouts[str(node.result)] = found
        attrs: dict[str, object] = {"windows": found.entries(self.symbols), "features": shape[1:]}
        if node.op == "conv2d":
            attrs["kernel"] = node.inputs[1].type.shape[2:]
        return WINDOWS + node.op, attrs

    def _relaxed_on_windows(
        self, node: Node, block: str, features: tuple[int, ...]
    ) -> dict[str, object]:
        layouts = [self.layouts.get(str(value)) for value in node.inputs]
        spec, own = ops.get(node.op), own_layout(block, features, self.batch[str(node.result)])
        if spec is None or own is None or (found := layout_after(node, spec, layouts)) is None:
            return {}
        layout = Layout(found.features, {**found.blocks, **own.blocks})
        self.layouts[str(node.result)] = layout
        return {"windows": layout.entries(self.symbols)}

    def _restart(self, node: Node) -> None:
        """Bound as an interval and begin a new block."""
        key = str(node.result)
        interval = self._add_interval(node, [self._interval_or_plain(v) for v in node.inputs])
        self.track[key] = self.pre[key] = interval
        self.symbolic[key] = self._fresh(interval, key, node.result.name, node)

    def _interval(self, value: Value) -> Value:
        """The tightest interval at hand for a symbolic value."""
        key = str(value)
        if key not in self.pre:
            type_ = IntervalType(value.type.dtype, value.type.shape)
            symbolic, sound = self.symbolic[key], self.options.sound
            found = self.builder.add(
                "symbolic.sound.concretize" if sound else "symbolic.concretize",
                (symbolic,),
                type_,
                {SYMBOLS: self._count(symbolic)} if sound else {},
                name=f"{value.name}_bounds",
            )
            if self.options.mix:
                found = self.builder.add(
                    "interval.meet", (self.track[key], found), type_, name=f"{value.name}_mix"
                )
            self.pre[key] = found
        return self.pre[key]

    def _interval_or_plain(self, value: Value) -> Value:
        return self._interval(value) if str(value) in self.symbolic else self.plain[str(value)]

    def _fresh(
        self,
        interval: Value,
        key: str,
        block: str,
        node: Node | None,
        op: str = "symbolic.fresh",
        more: tuple[Value, ...] = (),
    ) -> Value:
        type_ = interval.type
        batch = self.batch[key]
        features = self._features(type_.shape, batch, node) or ()
        self.symbols[block] = math.prod(features)
        extra: dict[str, object] = {}
        if self.options.sound:
            op, extra = "symbolic.sound.fresh", {"precision": precision_of(type_.dtype)}
        elif self.options.windows and (layout := own_layout(block, features, batch)) is not None:
            self.layouts[key] = layout
            extra = {"windows": layout.entries(self.symbols)}
        return self.builder.add(
            op,
            (interval, *more),
            SymbolicType(type_.dtype, type_.shape, (block,)),
            {"block": block, "batch_dim": batch, "features": features, **extra},
            name=f"{block}_symbols".replace(".", "_"),
        )

    def _features(
        self, shape: Shape, batch: int | None, node: Node | None
    ) -> tuple[int, ...] | None:
        sizes = tuple(entry for i, entry in enumerate(shape) if i != batch)
        if all(isinstance(entry, int) for entry in sizes):
            return sizes  # type: ignore[return-value]
        if node is not None:
            self.problems.append(mixes_samples(node))
        return None

    def _batch(self, node: Node, spec: OpSpec) -> int | None:
        dims = tuple(self.batch.get(str(value)) for value in node.inputs)
        if spec.batch is None or all(dim is None for dim in dims):
            return None
        shapes = tuple(value.type.shape for value in node.inputs)
        return spec.batch(dims, shapes, node.result.type.shape, **node.attrs)

    def _add(
        self,
        op: str,
        operands: list[Value],
        node: Node,
        blocks: tuple[str, ...],
        attrs: dict[str, object],
    ) -> Value:
        type_ = SymbolicType(node.result.type.dtype, node.result.type.shape, blocks)
        spec = ops.get(node.op)
        if self.options.sound and spec is not None:
            op = op.replace(SYMBOLIC, SYMBOLIC + SOUND)
            attrs |= attributes(spec, node.inputs, node, wide=True) | turns(spec, node.inputs)
            attrs[SYMBOLS] = sum(self.symbols[name] for name in blocks)
        return self.builder.add(op, operands, type_, attrs, name=node.result.name, span=node.span)

    def _add_interval(self, node: Node, operands: list[Value]) -> Value:
        type_ = IntervalType(node.result.type.dtype, node.result.type.shape)
        name = f"{node.result.name}_interval"
        spec = ops.get(node.op)
        assert spec is not None
        op, attrs = INTERVAL + node.op, node.attrs
        if self.options.sound:
            op, attrs, problem = sound_interval(node, spec, operands, wide=True)
            self.problems += [] if problem is None else [problem]
        return self.balls.interval(node, spec, operands) or self.builder.add(
            op, operands, type_, attrs, name=name, span=node.span
        )

    def _count(self, symbolic: Value) -> int:
        """Symbols of a value, those of all blocks together."""
        assert isinstance(symbolic.type, SymbolicType)
        return sum(self.symbols[name] for name in symbolic.type.blocks)

    def _give_up(self, node: Node) -> None:
        """Stand-ins, so that the remaining problems are found too; never part of a result."""
        key, type_ = str(node.result), node.result.type
        self.batch[key] = None
        stand_in = TensorType(type_.dtype, type_.shape)
        value = Value(f"{node.result.name}_unsupported", stand_in)
        self.symbolic[key] = self.track[key] = self.pre[key] = value
