"""Interval rules that enclose real arithmetic, derived from what an op declares.

`interval.sound.OP` runs the op's interval rule on intervals whose conversions round
outward and adds the rounding that the op declares:

- an op that only moves or selects elements, or declares that it is exact: nothing;
- an affine op made by `affine`: its error goes into the radius before the one product that
  the radius costs anyway (`_centred`);
- an element-wise op: its ulps, at each end;
- any other op that declares terms and a magnitude: γ(terms)·magnitude.

An op that declares nothing, and a composite without a rule of its own (`OpSpec.sound`),
have no sound rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.rounding import (
    PRECISIONS,
    Outward,
    Precision,
    above,
    below,
    grown,
    widened,
)
from boundgraph.ops._spec import Kind, OpSpec, Rule

SOUND = "sound."
TERMS, PRECISION = "terms", "precision"
PARTS, FULL, WIDE = "parts", "full", "wide"
# Attributes of a sound node beside those of its op.
SOUND_ATTRS = (TERMS, PRECISION, PARTS, FULL, WIDE, "symbols")
# What `backward.sound.OP` is told of an affine step.
STEP = ("bounded", "moves", "direct", TERMS, FULL, WIDE, "operand_dims")
# Functions whose values are at least 0, so that a root or a logarithm may follow.
_NOT_NEGATIVE = (
    "square", "exp", "exp2", "cosh", "sqrt", "rsqrt", "sigmoid", "softplus", "erfc", "acosh",
)  # fmt: skip
# Roundings of an interval rule beside those of the op: two products and a sum.
OWN = 4


def exact(spec: OpSpec) -> bool:
    """Whether the op's result is free of rounding: it moves or selects elements, or says so."""
    if spec.kind in (Kind.STRUCTURAL, Kind.SELECTION):
        return True
    rounding = spec.rounding
    return rounding.declared and rounding.ulps == 0 and rounding.terms is None


def why_not(spec: OpSpec | None) -> str | None:
    """Why an op has no sound interval rule, or None where it has one."""
    if spec is None or spec.interval is None:
        return "it has no interval rule"
    if spec.user:
        return "it is registered by the user, whose rules nobody has proved"
    if spec.sound is not None or exact(spec):
        return None
    if not spec.rounding.declared:
        return "it declares no rounding"
    if spec.kind in (Kind.COMPOSITE, Kind.CONSTANT):
        return "its interval rule is made of several roundings that nobody has analysed"
    if spec.rounding.terms is not None and spec.magnitude is None:
        return "it declares the terms of its sums but not their magnitude"
    return None


def interval_rule(spec: OpSpec) -> Rule | None:
    """The rule of `interval.sound.NAME`, or None where there is none."""
    if why_not(spec) is not None:
        return None
    body: Callable[..., Interval]
    if spec.sound is not None:
        body = _own
    elif exact(spec):
        body = _exact
    elif spec.centred:
        body = _centred
    elif spec.kind is Kind.ELEMENTWISE and spec.rounding.terms is None:
        body = _at_the_ends
    else:
        body = _declared

    def rule(*operands: Any, terms: int, precision: str, **attrs: Any) -> Outward:
        constants = PRECISIONS[precision]
        values = [Outward.of(v, constants) if isinstance(v, Interval) else v for v in operands]
        found = body(spec, values, terms, constants, attrs)
        return Outward.of(found, constants)

    return rule


def _run(spec: OpSpec, operands: Sequence[Any], attrs: Mapping[str, Any]) -> Interval:
    assert spec.interval is not None
    return spec.interval(*operands, **attrs)  # type: ignore[no-any-return]


def _own(spec: OpSpec, operands: Sequence[Any], terms: int, p: Precision, attrs: Any) -> Interval:
    assert spec.sound is not None
    return spec.sound(*operands, terms=terms, precision=p, **attrs)  # type: ignore[no-any-return]


def _exact(spec: OpSpec, operands: Sequence[Any], terms: int, p: Precision, attrs: Any) -> Interval:
    return _run(spec, operands, attrs)


def _centred(
    spec: OpSpec, operands: Sequence[Any], terms: int, p: Precision, attrs: Any
) -> Interval:
    """Centre through L; radius, and the error of both, in one product through |L|.

    The centre errs by G·(|L||c| + |b|) + g·|centre|, see `Centre`, and the product of the radius
    shrinks by a factor 1 − H at worst, with H = γ(full + 2), so |L| acts on
    `(r + G|c|)/((1 − u)(1 − H))`, rounded up. Underflow costs η per product and per sum, and
    η·|L| for what is flushed before it.
    """
    assert spec.magnitude is not None
    x, *rest = operands
    how, attrs = Centre.of(terms, attrs)
    lost = 2.0 * (p.steps(how.full + 2) + 8) * p.unit
    share = how.share(p) * (1.0 + lost)
    center = how.run(spec, [x.center, *rest], attrs)
    spread = x.radius * (1.0 + lost) + (x.center.abs() * share + 16.0 * p.tiny)
    radius = spec.magnitude(spread, *rest, **attrs)
    radius = radius + 16.0 * (terms + how.full + 2) * p.tiny
    offset = offset_of(spec, x.center, rest, attrs)
    if offset is not None:
        radius = radius + offset * share
    if how.wide:
        radius = radius + center.abs() * (2.0 * p.unit)
    if spec.rounding.scales:
        radius = radius + (x.center.abs() + x.radius) * (16.0 * p.tiny)
    return Outward.ball(center, grown(radius, p), p)


@dataclass(frozen=True)
class Centre:
    """How the centre of an affine op's result is computed, and how far it may be off.

    Args:
        terms: roundings that meet in it.
        full: roundings of the op's sums taken whole.
        parts: equal blocks that the sums are taken in.
        wide: computed in float64 and rounded once.
    """

    terms: int
    full: int
    parts: int = 1
    wide: bool = False

    @classmethod
    def of(cls, terms: int, attrs: Mapping[str, Any]) -> tuple[Centre, dict[str, Any]]:
        """What the attributes of a node say, and the other attributes."""
        rest = dict(attrs)
        full = rest.pop(FULL, terms)
        return cls(terms, full, rest.pop(PARTS, 1), rest.pop(WIDE, False)), rest

    def share(self, p: Precision) -> float:
        """G: the centre errs by G·(|L||c| + |b|), and by u of itself where it is `wide`."""
        if self.wide:
            # Multiplied by a float near 1 and rounded to one: not a multiple of u here.
            return PRECISIONS["f64"].gamma(self.full + 8) * 1.001
        return p.gamma(self.terms + 2)

    def run(self, spec: OpSpec, operands: Sequence[Any], attrs: Mapping[str, Any]) -> Tensor:
        """The op on centres; all operands are floats where `wide`."""
        if self.wide:
            values = [value.double() for value in operands]
            return spec.concrete(*values, **attrs).to(operands[0].dtype)  # type: ignore[no-any-return]
        if self.parts > 1:
            assert spec.blocks is not None
            return spec.blocks(*operands, parts=self.parts, **attrs)  # type: ignore[no-any-return]
        return spec.concrete(*operands, **attrs)  # type: ignore[no-any-return]


def offset_of(spec: OpSpec, like: Tensor, rest: Sequence[Tensor], attrs: Mapping[str, Any]) -> Any:
    """Size of what an affine op adds: declared, or found by running the op at zero."""
    if spec.rounding.offset is not None:
        return spec.rounding.offset(like, *rest, **attrs)
    if spec.linear:
        return None
    return spec.concrete(torch.zeros_like(like), *rest, **attrs).abs()


def _at_the_ends(
    spec: OpSpec, operands: Sequence[Any], terms: int, p: Precision, attrs: Any
) -> Interval:
    """Each end is a value of the function, off by the declared ulps (twice, for rounded
    constants in the rule itself)."""
    found = Outward.of(_run(spec, operands, attrs), p)
    share = (2 * terms + 4) * p.unit
    lower = below(found.lower, found.lower.abs() * share, p)
    if spec.name in _NOT_NEGATIVE:
        lower = lower.clamp(min=0.0)
    return Outward(lower, above(found.upper, found.upper.abs() * share, p), p)


def _declared(
    spec: OpSpec, operands: Sequence[Any], terms: int, p: Precision, attrs: Any
) -> Interval:
    """Declared ulps of the result and γ(terms) of the magnitude, twice: for the op's own
    roundings and for those of its interval rule."""
    found = Outward.of(_run(spec, operands, attrs), p)
    size = found.magnitude()
    if spec.rounding.terms is not None:
        assert spec.magnitude is not None
        sizes = [v.magnitude() if isinstance(v, Outward) else v.abs() for v in operands]
        size = size + spec.magnitude(*sizes, **attrs)
        if spec.boundable == (0,) and spec.kind is Kind.AFFINE:
            offset = offset_of(spec, sizes[0], sizes[1:], attrs)
            size = size if offset is None else size + offset
    error = size * (2.0 * p.gamma(terms + OWN)) + 16.0 * (terms + OWN) * p.tiny
    return widened(found, grown(error, p), p)
