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

import math
from collections.abc import Callable, Mapping, Sequence
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
PARTS, FULL = "parts", "full"
# Attributes of a sound node beside those of its op.
SOUND_ATTRS = (TERMS, PRECISION, PARTS, FULL)
# What `backward.sound.OP` is told of an affine step.
STEP = ("bounded", "moves", "direct", TERMS, "own", PARTS, FULL, "operand_dims")
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
    if spec.partial:
        return "it is undefined for some operands, and rounding outward would hide that"
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

    With G = γ(terms + 2): the centre errs by G·(|L||c| + |b|) and the product of the radius
    shrinks by a factor 1 − H at worst, with H = γ(full + 2), so |L| acts on
    `(r + G|c|)/((1 − u)(1 − H))`, rounded up. G < H where the centre is summed in blocks.
    Underflow costs η per product and per sum, and η·|L| for what is flushed before it.
    """
    assert spec.magnitude is not None
    x, *rest = operands
    parts, full, attrs = of_sums(terms, attrs)
    steps = p.steps(terms + 2)
    gain = 1.0 + 2.0 * (p.steps(full + 2) + 8) * p.unit
    share = math.ceil(steps * gain + 1) * p.unit
    center = at_center(spec, x.center, rest, parts, attrs)
    spread = x.radius * gain + (x.center.abs() * share + 16.0 * p.tiny)
    radius = spec.magnitude(spread, *rest, **attrs)
    radius = radius + 16.0 * (terms + full + 2) * p.tiny
    offset = offset_of(spec, x.center, rest, attrs)
    if offset is not None:
        radius = radius + offset * share
    if spec.rounding.scales:
        radius = radius + (x.center.abs() + x.radius) * (16.0 * p.tiny)
    return Outward.ball(center, radius, p)


def of_sums(terms: int, attrs: Mapping[str, Any]) -> tuple[int, int, dict[str, Any]]:
    """Blocks that the centre is summed in, roundings of the sums taken whole, other attributes."""
    rest = dict(attrs)
    return rest.pop(PARTS, 1), rest.pop(FULL, terms), rest


def at_center(
    spec: OpSpec, center: Tensor, rest: Sequence[Any], parts: int, attrs: Mapping[str, Any]
) -> Tensor:
    """The op at a centre, its sums taken in so many blocks."""
    if parts > 1:
        assert spec.blocks is not None
        return spec.blocks(center, *rest, parts=parts, **attrs)  # type: ignore[no-any-return]
    return spec.concrete(center, *rest, **attrs)  # type: ignore[no-any-return]


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
    return Outward(
        below(found.lower, found.lower.abs() * share, p),
        above(found.upper, found.upper.abs() * share, p),
        p,
    )


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
