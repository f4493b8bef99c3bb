"""What an op is, and the registry of all ops.

An op is defined once: what it computes, how it maps intervals, how it maps symbolic
intervals, how much its floating-point evaluation may err, how torch spells it and how
to draw test cases for it. Frontends, passes, the command line and the tests read the
registry; a missing rule is a hole that `boundgraph ops` prints.

Rules are plain tensor code without value-dependent branches. Operands that carry a
bound arrive as `Interval` (or `Symbolic`), all others as tensors.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.errors import InternalError
from boundgraph.ir.program import Value
from boundgraph.ir.types import Shape

Rule = Callable[..., Any]


class Kind(StrEnum):
    """What can be derived for an op: see `docs/design.md`, "Kinds"."""

    AFFINE = "affine"
    STRUCTURAL = "structural"
    ELEMENTWISE = "elementwise"
    BILINEAR = "bilinear"
    SELECTION = "selection"
    COMPOSITE = "composite"
    CONSTANT = "constant"


@dataclass(frozen=True)
class Rounding:
    """How far a computed value may lie from the real one.

    The error of an output element is at most
    `ulps · u · |value| + γ(terms) · magnitude`, with u the unit roundoff of the dtype,
    γ(n) = n·u / (1 − n·u) and `magnitude` the same op on absolute values (for an affine op
    its linear part, plus the size of its offset).

    Args:
        ulps: relative error of the last operation, in unit roundoffs.
        terms: number of accumulated products per output element as a function of the
            op's operands and attributes; None where nothing is accumulated.
        offset: size of what an affine op adds, where terms of it may cancel; the op's
            value at zero where None. It broadcasts to the result; None means that the op
            adds nothing.
        scales: the op forms its own factors, which may underflow; operand and result have
            the same shape.
        blocks: into how many equal blocks the sums are worth taking, as a function of operands
            and attributes; for `OpSpec.blocks`, or for `OpSpec.sound`.
        transposed: number of outputs that one element of the operand reaches at most, as a
            function of operands and attributes; all of a sample where None.
        relative: what is accumulated is positive, so the error is relative to the value and
            `magnitude` only says how errors of the operand grow.
        declared: False where nobody said anything; such an op has no rounding-sound rule.
    """

    ulps: float = 0.0
    terms: Callable[..., int] | None = None
    offset: Rule | None = None
    scales: bool = False
    blocks: Callable[..., int] | None = None
    transposed: Callable[..., int] | None = None
    relative: bool = False
    declared: bool = True


EXACT = Rounding()
UNDECLARED = Rounding(declared=False)


@dataclass(frozen=True)
class OpCase:
    """A randomly drawn use of an op for the tests.

    Args:
        shapes: shape of each operand.
        attrs: attributes.
        bounded: positions of the operands that carry a bound.
        low, high: range to draw operand values from.
        positive: positions of operands to draw between 0.25 and 2 instead (variances).
        indices: positions of operands that are indices, each with its number of values.
        masks: positions of operands that are tensors of booleans.
        given: positions of operands that are not drawn, each with its tensor.
    """

    shapes: tuple[tuple[int, ...], ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    bounded: tuple[int, ...] = (0,)
    low: float = -3.0
    high: float = 3.0
    positive: tuple[int, ...] = ()
    indices: tuple[tuple[int, int], ...] = ()
    masks: tuple[int, ...] = ()
    given: tuple[tuple[int, Tensor], ...] = ()


Sampler = Callable[[random.Random], OpCase]
BatchRule = Callable[..., int | None]


@dataclass(frozen=True)
class OpSpec:
    """One op of the registry.

    Args:
        name: unique name, as it prints in a program.
        kind: decides which rules are derived.
        concrete: `(*tensors, **attrs) -> Tensor`, what the op computes.
        interval: the same with `Interval` at bounded positions; returns an `Interval`.
        symbolic: the same with `Symbolic` at bounded positions; returns a `Symbolic`.
            Where `relaxed`, it also takes `pre` (an `Interval` enclosing the operand),
            `block`, `batch_dim` and `features`, and adds the block.
        relaxed: the symbolic rule needs an enclosing interval and adds error terms.
        magnitude: `|L|` applied to absolute values, for rounding analysis.
        boundable: operand positions that may carry a bound; None means any.
        batch: `(batch_dims, shapes, out_shape, **attrs) -> int | None`: where the
            dimension that separates samples ends up, None where samples get mixed.
        rounding: declared floating-point error of `concrete`.
        centred: the interval rule is `concrete` on the centre and `magnitude` on the radius.
        linear: the op adds no offset.
        sound: `interval` with its rounding accounted for, for ops whose declared rounding
            does not say enough: operands and result are `Outward`, and it takes
            `terms` (declared terms and ulps) and `precision`.
        blocks: `concrete` with its sums taken in `parts` equal blocks, whose sums are then added
            up: with n terms fewer roundings meet in each, n/parts + parts. Also takes `parts`.
        backward: `(form, *operands, operand, carry, shapes, target, dims, **attrs)`: a
            `LinearForm` on the result as one on operand `operand`. Bounded operands are
            left out, or given as their enclosing intervals where `relaxed`. `carry` tells
            whether the offset travels along this operand, `shapes` and `target` are the
            shapes of operands and result, `dims` the sample's dimensions of a coefficient.
        lines: `(pre: Interval, **attrs) -> Lines` of an element-wise op.
        learnable: the slope of the lower line is free in [0, 1]; `backward` and `lines`
            take it as an optional tensor after the interval.
        kinks: `(**attrs) -> tuple[float, ...] | None`: between these points an element-wise
            op is linear and its lines exact, so that tighter bounds of an operand that no
            kink splits change nothing; None where that holds nowhere.
        unit_rows: `(units, *operands, shapes, target, carry, **attrs)`: the `LinearForm` on
            the operand of the elements `units` of a sample of the result, which `backward`
            would give for one-hot rows, without multiplying zeros.
        sample: draws a test case.
        row_norm: `(*rest, q) -> Tensor`, an upper bound on the q-norm of each row of the linear
            part of an affine op, broadcasting to the result; for regions that are p-balls.
        partial: it gives NaN for some finite operands.
        user: registered from outside of the package: nothing about it is proved here.
        refusal: why it takes no bounds, where there is more to say than that no rule exists.
        way_out: what to do about it.
        summary: one line for `boundgraph ops`.
    """

    name: str
    kind: Kind
    concrete: Rule
    interval: Rule | None = None
    symbolic: Rule | None = None
    relaxed: bool = False
    magnitude: Rule | None = None
    boundable: tuple[int, ...] | None = None
    batch: BatchRule | None = None
    rounding: Rounding = UNDECLARED
    centred: bool = False
    linear: bool = False
    sound: Rule | None = None
    blocks: Rule | None = None
    backward: Rule | None = None
    lines: Rule | None = None
    learnable: bool = False
    kinks: Rule | None = None
    unit_rows: Rule | None = None
    sample: Sampler | None = None
    row_norm: Rule | None = None
    partial: bool = False
    user: bool = False
    refusal: str = ""
    way_out: str = ""
    summary: str = ""

    def accepts(self, position: int) -> bool:
        return self.boundable is None or position in self.boundable

    def reads_intervals(self, bounded: int) -> bool:
        """Whether the backward rule takes the intervals of bounded operands.

        Args:
            bounded: number of operands that carry a bound.
        """
        if self.kind is Kind.BILINEAR:
            return bounded > 1
        reads = self.kind in (Kind.SELECTION, Kind.COMPOSITE)
        return self.backward is None or self.lines is not None or reads


_OPS: dict[str, OpSpec] = {}
_LOWERINGS: dict[Hashable, Callable[..., Any]] = {}
# Lowerings that go with a removable op.
_OWNED: dict[str, list[Hashable]] = {}


def register(spec: OpSpec) -> OpSpec:
    """Add an op to the registry; a second definition of a name is an error."""
    if spec.name in _OPS:
        raise InternalError(f"op {spec.name!r} is defined twice")
    _OPS[spec.name] = spec
    return spec


def unregister(name: str) -> None:
    """Remove an op and the lowerings that were added for it."""
    for target in _OWNED.pop(name, ()):
        _LOWERINGS.pop(target, None)
    _OPS.pop(name, None)


def get(name: str) -> OpSpec | None:
    """The op of that name, or None."""
    return _OPS.get(name)


def all_ops() -> tuple[OpSpec, ...]:
    return tuple(_OPS[name] for name in sorted(_OPS))


class Lowering(Protocol):
    """What a lowering may use to add canonical ops for one captured call."""

    def emit(self, op: str, *inputs: Value, **attrs: Any) -> Value:
        """Add a node of a registered op; the result type is inferred."""
        ...

    def shape(self, value: Value) -> Shape: ...

    def dim(self, value: Value, dim: int, *, extra: int = 0) -> int:
        """A dimension as a non-negative int; `extra` counts dimensions about to be added."""
        ...

    def tensor(self, value: Any, like: Value | None = None) -> Value:
        """A Value for a tensor-like argument: a Value, a Python number or a tensor."""
        ...

    def is_tensor(self, value: Any) -> bool: ...

    def depends(self, value: Any) -> bool:
        """Whether a value depends on the model's inputs (and so may carry a bound)."""
        ...

    def set_zero(self, value: Value) -> Value:
        """Note that a value is all zeros, whatever the parameters hold; returns it."""
        ...

    def is_zero(self, value: Value) -> bool:
        """Whether that was noted."""
        ...

    def called(self, value: Value) -> tuple[str, tuple[Any, ...]] | None:
        """The torch function that a `call` runs and its arguments; None for any other value."""
        ...

    def broadcast(self, *values: Any) -> tuple[Value, ...]:
        """Values ready for one broadcasting op.

        Those that depend on the inputs are reshaped and expanded to the common shape;
        constants stay as they are.
        """
        ...

    def reject(self, message: str, help: str | None = None) -> Any:
        """Record an unsupported use at the user's line; a stand-in lets the import go on."""
        ...


def lowers(
    *targets: Hashable, op: str | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a lowering for torch functions, overloads (`aten.relu.default`) and methods.

    Methods are spelled `"Tensor.relu"`. The lowering is called as
    `lowering(b, *args, **kwargs)` with a `Lowering` first and the captured call's own
    arguments; tensors arrive as `Value`s.

    Args:
        targets: what is lowered.
        op: the op that the lowering goes with, if it can be removed.
    """
    if op is not None:
        _OWNED.setdefault(op, []).extend(targets)

    def wrap(fn: Callable[..., Any]) -> Callable[..., Any]:
        for target in targets:
            # torch gives some functions two names (F.relu_ is torch.relu_).
            if _LOWERINGS.get(target, fn) is not fn:
                raise InternalError(f"two lowerings for {target!r}")
            _LOWERINGS[target] = fn
        return fn

    return wrap


def lowering(target: Hashable) -> Callable[..., Any] | None:
    return _LOWERINGS.get(target)


def lowered_targets() -> Iterable[Hashable]:
    return _LOWERINGS.keys()


def keep_batch(batch_dims: tuple[int | None, ...], *_: Any, **__: Any) -> int | None:
    """Samples stay where they are (element-wise ops of one operand)."""
    return batch_dims[0]


def batch_first(batch_dims: tuple[int | None, ...], *_: Any, **__: Any) -> int | None:
    """Ops that act on each slice of dimension 0 by itself."""
    return 0 if batch_dims[0] == 0 else None


def broadcast_batch(
    batch_dims: tuple[int | None, ...], shapes: tuple[Shape, ...], out: Shape, **_: Any
) -> int | None:
    """Broadcasting ops: bounded operands must have their samples on one output dimension."""
    found = {
        len(out) - len(shape) + dim
        for dim, shape in zip(batch_dims, shapes, strict=True)
        if dim is not None
    }
    return found.pop() if len(found) == 1 else None


def over_symbols(fn: Callable[[Tensor], Tensor], block: Tensor) -> Tensor:
    """Apply a per-sample function to generators `[symbols, batch, ...]`."""
    symbols = block.shape[0]
    return fn(block.flatten(0, 1)).unflatten(0, (symbols, -1))


def to_ends(fn: Callable[[Tensor], Tensor]) -> Callable[[Interval], Interval]:
    """The interval rule of an increasing function."""
    return lambda x: Interval(fn(x.lower), fn(x.upper))
