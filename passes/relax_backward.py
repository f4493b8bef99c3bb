"""Backward linear bounds (CROWN) as a program transformation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from boundgraph import ops
from boundgraph.errors import ConfigError, Diagnostic, UnsupportedError
from boundgraph.ir.program import Node, Program, ProgramBuilder, Value
from boundgraph.ir.types import Dim, IntervalType, Stage
from boundgraph.ops import Kind, OpSpec
from boundgraph.ops._sound import SOUND
from boundgraph.ops._sound_backward import walks
from boundgraph.ops._sound_terms import precision_of
from boundgraph.ops.bounded import BACKWARD, INTERVAL
from boundgraph.passes._balls import Balls, Norms
from boundgraph.passes._rounded import computes_exactly, sound_interval, unsound
from boundgraph.passes._unsupported import diagnose, mixes_samples, no_elements
from boundgraph.passes._walk import SLOPE as SLOPE
from boundgraph.passes._walk import Walk
from boundgraph.passes.manager import Effect, Pass

# What −∞ may be hidden from.
_HIDE = ("softmax", "log_softmax", "logsumexp", "attend")


@dataclass(frozen=True)
class RelaxBackward(Pass):
    """Bound the outputs by linear forms carried backwards to the input, like reverse-mode AD.

    An interval track runs forward first. From each output a form with one row per element
    walks back: affine ops by their transpose, structural ops by moving coefficients,
    relaxed ops by the line that the sign of the coefficient asks for, several readers of
    one value by addition. An op without a backward rule ends the walk there: its interval
    stands for it, which is sound and loose. At a region the form takes its least value.

    Two savings fall out of the walk. Until it meets a relaxed op (or a constant that differs
    between samples) the coefficients are the same for every sample, so the batch dimension
    of a form stays 1; and the rows for upper bounds are the negated rows for lower bounds,
    so they are appended (`backward.sign`) only there.

    Source: Zhang et al., CROWN (arXiv 1811.00866), CROWN-IBP (1906.06316); Xu et al. (2002.12920).

    Args:
        bounded: names of the inputs that carry a region.
        intermediate: backward bounds for the operands of relaxed ops, too (`crown`), not
            only for the outputs (`crown-ibp`).
        learn: the free slopes of relaxations become further inputs of the program, one
            tensor of the operand's shape for each relaxed op and each walk through it.
        lower_only: bound outputs below only; their upper ends are infinite. Halves the rows.
        sound: intervals and forms account for rounding; an op whose backward rule has no
            rounding analysis ends the walk, like one without a backward rule.
        norms: which of the inputs are p-balls, and p: forms take their dual norm there.
        linear: after its bounds the only output gives the forms at the perturbed inputs, and
            the bounds of what the walk left behind as intervals, if anything.
        forward: positions of outputs whose interval is wanted, without a walk.
        only: names of the values that `intermediate` means; None for all that matter.
        meet: the outputs' backward bounds are intersected with their intervals.
        parallel: the backward schedule of `symbolic`. Every relaxed op takes the two parallel
            lines of its symbolic rule over backward bounds alone, and an op without a
            symbolic rule ends the walk, so that the bounds are those of `RelaxSymbolic` up to
            rounding; over p-balls they may be tighter.
    """

    bounded: tuple[str, ...]
    intermediate: bool = False
    learn: bool = False
    lower_only: bool = False
    sound: bool = False
    norms: Norms = ()
    linear: bool = False
    forward: tuple[int, ...] = ()
    only: tuple[str, ...] | None = None
    meet: bool = False
    parallel: bool = False

    name: ClassVar[str] = "relax-backward"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.RELAXES

    def run(self, program: Program) -> Program:
        builder = ProgramBuilder(Stage.BOUNDED)
        run = Run(self, program, builder, Balls(self.norms, builder, self.sound))
        for value in program.params:
            run.plain[str(value)] = run.builder.param(value.name, value.type)
        for value in program.inputs:
            run.add_input(value)
        run.balls.add_inputs(program.inputs)
        for node in program.nodes:
            run.add_node(node)
        outputs = (
            [] if run.problems else [v for i in range(len(program.outputs)) for v in run.output(i)]
        )
        if run.problems:
            raise UnsupportedError(list(dict.fromkeys(run.problems)))
        return run.builder.build(outputs)


@dataclass
class Run:
    """The tables of one run, keyed by the text of the concrete program's values."""

    options: RelaxBackward
    program: Program
    builder: ProgramBuilder
    balls: Balls
    plain: dict[str, Value] = field(default_factory=dict)
    interval: dict[str, Value] = field(default_factory=dict)
    batch: dict[str, int | None] = field(default_factory=dict)
    problems: list[Diagnostic] = field(default_factory=list)
    nodes: dict[str, Node] = field(default_factory=dict)
    order: dict[str, int] = field(default_factory=dict)
    read: dict[str, tuple[str, ...]] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)
    tight: set[str] = field(default_factory=set)

    @cached_property
    def users(self) -> dict[str, list[Node]]:
        return self.program.users()

    def add_input(self, value: Value) -> None:
        key, type_ = str(value), value.type
        if value.name not in self.options.bounded:
            self.plain[key] = self.builder.input(value.name, type_)
            return
        self.interval[key] = self.builder.input(value.name, IntervalType(type_.dtype, type_.shape))
        dynamic = [i for i, entry in enumerate(type_.shape) if isinstance(entry, Dim)]
        self.batch[key] = dynamic[0] if dynamic else None

    def add_node(self, node: Node) -> None:
        """Extend the interval track; under `crown`, tighten what relaxed ops read."""
        key, type_ = str(node.result), node.result.type
        self.nodes[key], self.order[key] = node, len(self.order)
        bounded = self.bounded(node)
        if not bounded:
            if self.options.sound and not computes_exactly(node, ops.get(node.op)):
                self.problems.append(unsound(node, "it computes a constant with rounding"))
            self.plain[key] = self.builder.add(
                node.op,
                [self.plain[str(value)] for value in node.inputs],
                type_,
                node.attrs,
                name=node.result.name,
                span=node.span,
            )
            return
        spec = ops.get(node.op)
        rejected = [i for i in bounded if spec is None or not spec.accepts(i)]
        if 0 in type_.shape:
            self.problems.append(no_elements(node))
        if spec is None or spec.interval is None or rejected:
            self.problems.append(diagnose(node, spec, rejected or bounded))
            self.interval[key], self.batch[key] = node.result, None
            return
        self.batch[key] = self._batch_of(node, spec)
        if not self.problems and self.options.parallel and self._adds_symbols(node, spec):
            for i in bounded:
                self._replace(node.inputs[i])
        elif self.options.intermediate and not self.problems and self.relaxes(node, spec):
            for i in bounded:
                self._tighten(node.inputs[i])
        self._bound(node, spec)

    def _bound(self, node: Node, spec: OpSpec) -> None:
        """The interval of a node's result, from those of its operands as they are now."""
        key, type_ = str(node.result), node.result.type
        operands = [self.interval_or_plain(value) for value in node.inputs]
        op, attrs = INTERVAL + node.op, node.attrs
        if self.options.sound:
            # One product for each layer in float64, beside those of all rows.
            op, attrs, problem = sound_interval(node, spec, operands, wide=True)
            self.problems += [] if problem is None else [problem]
        refined = self.balls.interval(node, spec, operands, wide=True)
        self.interval[key] = refined or self.builder.add(
            op,
            operands,
            IntervalType(type_.dtype, type_.shape),
            attrs,
            name=f"{node.result.name}_interval",
            span=node.span,
        )
        if refined is None:
            self.read[str(self.interval[key])] = tuple(map(str, operands))

    def output(self, position: int) -> list[Value]:
        value = self.program.outputs[position]
        key = str(value)
        if self.options.linear:
            if len(self.program.outputs) > 1:
                raise ConfigError("linear bounds need a model with one output tensor")
            if key not in self.interval:
                raise ConfigError("no perturbed input reaches the output: it is a constant")
            return self._linear(value)
        if key not in self.interval:
            return [self.plain[key]]
        if key not in self.nodes or position in self.options.forward:
            return [self.interval[key]]
        back = self._backward(value, signed=not self.options.lower_only)
        if not self.options.meet:
            return [back]
        met = (self.interval[key], back)
        return [self.builder.add("interval.meet", met, back.type, name=f"{value.name}_met")]

    def _tighten(self, value: Value) -> None:
        """Replace a value's interval by its intersection with backward bounds.

        Where every relaxed reader is piecewise linear, only elements that one of its kinks
        splits are tightened: the others need no backward bounds.
        """
        key = str(value)
        only = self.options.only
        if key not in self.nodes or (only is not None and value.name not in only):
            return
        node, spec = self.nodes[key], ops.get(self.nodes[key].op)
        if key in self.tight or spec is None or not self.walks(node, spec):
            return
        if only is None and self._follows(node, spec):
            return
        if not self._worth_it(value):
            # Exact already, or tightened as far as its readers care.
            if not self.interval[key].name.endswith("_bounds"):
                self.tight.add(key)
            return
        back = self._backward(value, signed=True)
        kinks = self._kinks(key)
        self.interval[key] = self.builder.add(
            "interval.meet" if kinks is None else "interval.tighten",
            (self.interval[key], back),
            back.type,
            {} if kinks is None else {"kinks": kinks},
            name=f"{value.name}_bounds",
        )
        if kinks is None:
            self.tight.add(key)

    def _follows(self, node: Node, spec: OpSpec) -> bool:
        """Whether the interval rule gives what a walk would, as the operands' bounds are tight.

        A line over an operand's bounds is nowhere outside of the function's range over them, and
        what is moved is bounded where it comes from. Parts of a value that are all asked for are
        one walk there.
        """
        moves = spec.kind is Kind.STRUCTURAL
        if spec.user or not (moves or spec.kind is Kind.ELEMENTWISE):
            return False
        sources = [node.inputs[i] for i in self.bounded(node)]
        for source in sources if moves else ():
            if str(source) not in self.tight and self._all_parts(source):
                self._tighten(source)
        if not all(str(source) in self.tight for source in sources):
            return False
        if not self.direct(node):
            self._bound(node, spec)
        self.tight.add(str(node.result))
        return True

    def _all_parts(self, value: Value) -> bool:
        """Whether relaxed ops read as many elements of parts of a value as it has."""
        count = 0
        for node in self.users.get(str(value), ()):
            spec = ops.get(node.op)
            if spec is None:
                continue
            if spec.kind is not Kind.STRUCTURAL or len(self.bounded(node)) > 1:
                return False
            rules = [ops.get(user.op) for user in self.users.get(str(node.result), ())]
            if any(rule is not None and rule.lines is not None for rule in rules):
                count += self._size(node.result)
        return count >= self._size(value)

    def _size(self, value: Value) -> int:
        return math.prod(entry for entry in value.type.shape if isinstance(entry, int))

    def _adds_symbols(self, node: Node, spec: OpSpec) -> bool:
        """Whether the forward schedule of `symbolic` would take intervals of the operands."""
        if spec.symbolic is None:
            return True
        return spec.relaxed and not (spec.kind is Kind.BILINEAR and len(self.bounded(node)) == 1)

    def _replace(self, value: Value) -> None:
        """Backward bounds instead of a value's interval, once."""
        key = str(value)
        node = self.nodes.get(key)
        if node is None or key in self.replaced:
            return
        self.replaced.add(key)
        spec = ops.get(node.op)
        if spec is not None and self.walks(node, spec):
            self.interval[key] = self._backward(value, signed=True)

    def _kinks(self, key: str) -> tuple[float, ...] | None:
        """The kinks of all relaxed readers of a value; None where one has none."""
        found: set[float] = set()
        for node in self.users.get(key, ()):
            spec = ops.get(node.op)
            if spec is None:
                continue
            # Later operands are not known yet: a product counts unless the others are plain.
            product = spec.kind is Kind.BILINEAR and not all(
                str(value) in self.plain for value in node.inputs if str(value) != key
            )
            if not product and not self.relaxes(node, spec):
                continue
            kinks = spec.kinks(**node.attrs) if spec.kinks is not None else None
            if kinks is None:
                return None
            found.update(kinks)
        return tuple(sorted(found)) or None

    def _worth_it(self, value: Value) -> bool:
        """Interval bounds are exact until the first relaxed op, and are taken once."""
        if self.interval[str(value)].name.endswith("_bounds"):
            return False
        if self.balls.found:
            return True
        return any(
            self.relaxes(node, spec)
            for node in self.ancestors(value)
            if (spec := ops.get(node.op)) is not None and self.bounded(node)
        ) or self._joins(value)

    def _joins(self, value: Value) -> bool:
        """Whether some value reaches this one along several paths, or a layer has a successor."""
        return sum(self.bounded(node) != [] for node in self.ancestors(value)) > 1

    def ancestors(self, value: Value) -> Iterable[Node]:
        seen: set[str] = set()
        stack = [str(value)]
        while stack:
            key = stack.pop()
            if key in seen or key not in self.nodes:
                continue
            seen.add(key)
            yield self.nodes[key]
            stack.extend(str(operand) for operand in self.nodes[key].inputs)

    def _backward(self, value: Value, *, signed: bool) -> Value:
        """The walk from one value to the inputs; an interval of the value."""
        return self._assemble(value, self._walk_back(value, signed), signed)

    def _linear(self, value: Value) -> list[Value]:
        """Bounds of the value, the forms at the inputs, and bounds of the rest."""
        inputs = [str(v) for v in self.program.inputs if str(v) in self.interval]
        ends = self._walk_back(value, signed=True)
        ends.sort(key=lambda end: inputs.index(end[1]) if end[1] in inputs else len(inputs))
        forms = [form for form, box in ends if box not in self.nodes]
        if len(forms) < len(inputs):
            raise ConfigError(
                "a perturbed input does not reach the output, or only through ops without a "
                "linear rule (see `boundgraph ops`): there is no linear dependence on it"
            )
        rest = [end for end in ends if end[1] in self.nodes]
        found = [self._assemble(value, ends, signed=True), *forms]
        return [*found, self._assemble(value, rest, signed=True)] if rest else found

    def _walk_back(self, value: Value, signed: bool) -> list[tuple[Value, str]]:
        """Forms over regions and over intervals where the walk stopped."""
        walk = Walk(self, value, signed)
        pending = sorted(
            (str(node.result) for node in self.ancestors(value)),
            key=self.order.__getitem__,
            reverse=True,
        )
        for here in pending:
            if here in walk.forms:
                walk.step(self.nodes[here])
        return walk.ends()

    def _assemble(self, value: Value, ends: list[tuple[Value, str]], signed: bool) -> Value:
        """The least values of forms over what they end at, as an interval of the value."""
        key = str(value)
        balls = [self.balls.found.get(box) if box not in self.nodes else None for _, box in ends]
        extra: dict[str, Any] = {}
        if any(balls):
            extra["norms"] = tuple(ball.norm if ball else 0.0 for ball in balls)
        if self.options.sound:
            extra["elements"] = tuple(self.elements(box) for _, box in ends)
            extra["shared"] = tuple(self.shares(form, box) for form, box in ends)
            extra["precision"] = precision_of(value.type.dtype)
        operands: list[Value] = []
        for (form, box), ball in zip(ends, balls, strict=True):
            operands += [form, self.interval[box], *((ball.center, ball.reach) if ball else ())]
        return self.builder.add(
            f"{self.prefix}assemble",
            operands,
            IntervalType(value.type.dtype, value.type.shape),
            {
                "signed": signed,
                "batch_dim": self.batch[key],
                "shape": value.type.shape,
                "dims": tuple(self.sample_dims(box) for _, box in ends),
                **extra,
            },
            name=f"{value.name}_backward",
            span=self.nodes[key].span if key in self.nodes else None,
        )

    @property
    def prefix(self) -> str:
        return BACKWARD + SOUND if self.options.sound else BACKWARD

    def walks(self, node: Node, spec: OpSpec) -> bool:
        """Whether a form may be carried through a node, or stops at its interval."""
        if spec.backward is None or (self.options.parallel and spec.symbolic is None):
            return False
        if self.options.sound and node.op == "where" and self._hides(node):
            return False
        return not self.options.sound or walks(spec, self.relaxes(node, spec), node.attrs)

    def _hides(self, node: Node) -> bool:
        """Whether a choice may put −∞, from whose centre no form can be measured."""
        return all(user.op in _HIDE for user in self.users.get(str(node.result), ()))

    def direct(self, node: Node) -> bool:
        """Whether the result's interval was computed from the operands' as they are now."""
        now = tuple(str(self.interval_or_plain(value)) for value in node.inputs)
        return self.read.get(str(self.interval[str(node.result)])) == now

    def shares(self, form: Value, key: str) -> bool:
        """Whether the coefficients of a form on a value are those of all samples."""
        batch, shape = self.batch[key], self.value(key).type.shape
        dynamic = any(isinstance(entry, Dim) for entry in form.type.shape)
        return batch is not None and isinstance(shape[batch], Dim) and not dynamic

    def elements(self, key: str) -> int:
        """Number of elements of a sample of a value."""
        shape = self.value(key).type.shape
        sizes = [entry for dim, entry in enumerate(shape) if dim != self.batch[key]]
        return math.prod(entry for entry in sizes if isinstance(entry, int))

    def sample_dims(self, key: str) -> tuple[int, ...]:
        """Dimensions of a coefficient that belong to one sample."""
        rank = len(self.value(key).type.shape)
        return tuple(dim + 1 for dim in range(rank) if dim != self.batch[key])

    def value(self, key: str) -> Value:
        return self.nodes[key].result if key in self.nodes else self.interval[key]

    def bounded(self, node: Node) -> list[int]:
        return [i for i, value in enumerate(node.inputs) if str(value) in self.interval]

    def relaxes(self, node: Node, spec: OpSpec) -> bool:
        """Whether the op's rule reads intervals of its bounded operands."""
        return spec.reads_intervals(len(self.bounded(node)))

    def interval_or_plain(self, value: Value) -> Value:
        return self.interval.get(str(value)) or self.plain[str(value)]

    def _batch_of(self, node: Node, spec: OpSpec) -> int | None:
        dims = tuple(self.batch.get(str(value)) for value in node.inputs)
        if all(dim is None for dim in dims):
            return None
        found = None
        if spec.batch is not None:
            shapes = tuple(value.type.shape for value in node.inputs)
            found = spec.batch(dims, shapes, node.result.type.shape, **node.attrs)
        if found is None:
            self.problems.append(mixes_samples(node))
        return found


def linear_inputs(program: Program) -> tuple[str, ...]:
    """The inputs that the forms among the outputs of a `linear` program belong to, in order."""
    bounds = next(node for node in program.nodes if node.result == program.outputs[0])
    inputs = set(program.inputs)
    return tuple(
        value.name
        for value in bounds.inputs
        if value in inputs and isinstance(value.type, IntervalType)
    )
