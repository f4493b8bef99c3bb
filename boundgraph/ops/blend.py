"""Mixtures a + w·(b − a), as gates make them: each operand once, so that none is forgotten."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval, as_interval
from boundgraph.domains.linear_form import LinearForm, dot
from boundgraph.domains.rounding import Outward, Precision, above, below
from boundgraph.domains.symbolic import Symbolic, diagonal
from boundgraph.ir.program import Value
from boundgraph.ops._sharing import shared
from boundgraph.ops._spec import Kind, Lowering, OpCase, OpSpec, Rounding, broadcast_batch, register


def _blend(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    return (1.0 - w) * a + w * b


def _corners(a: Interval, b: Interval, w: Interval) -> tuple[Tensor, Tensor]:
    """Least and largest value at the corners: the function is linear in each operand."""
    ends = []
    for weight in (w.lower, w.upper):
        rest = 1.0 - weight
        for size, more in ((rest, a), (weight, b)):
            up, down = torch.relu(size), torch.relu(-size)
            ends.append((up * more.lower - down * more.upper, up * more.upper - down * more.lower))
    first, second = (ends[0], ends[1]), (ends[2], ends[3])
    lows = [one[0] + two[0] for one, two in (first, second)]
    highs = [one[1] + two[1] for one, two in (first, second)]
    return torch.minimum(*lows), torch.maximum(*highs)


def _interval(a: Any, b: Any, w: Any) -> Interval:
    """Exact for operands that do not depend on one another."""
    return Interval(*_corners(as_interval(a), as_interval(b), as_interval(w)))


def _sound(a: Any, b: Any, w: Any, *, terms: int, precision: Precision) -> Outward:
    """`_interval`, less γ(terms) of what is added up."""
    sides = [Outward.of(as_interval(v), precision) for v in (a, b, w)]
    lower, upper = _corners(*sides)
    error = _magnitude(*(side.magnitude() for side in sides)) * (2.0 * precision.gamma(terms + 4))
    return Outward(below(lower, error, precision), above(upper, error, precision), precision)


def _magnitude(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    return a + w * (a + b)


def _symbolic(
    a: Any,
    b: Any,
    w: Any,
    *pre: Interval,
    block: str = "",
    batch_dim: int | None = None,
    features: tuple[int, ...] = (),
) -> Symbolic:
    """a + w·d with d = b − a, whose symbols cancel where a and b share them."""
    first, second, weight = (v if isinstance(v, Symbolic) else Symbolic(v, {}) for v in (a, b, w))
    gap = second.combine(first, -1.0)
    left = weight.map(lambda c: c * gap.center, lambda g: g * gap.center)
    right = gap.map(torch.zeros_like, lambda g: g * weight.center)
    error = weight.concretize().radius * gap.concretize().radius
    total = first.combine(left.combine(right))
    return total.with_block(block, diagonal(error, batch_dim, features))


@shared
def _planes(
    a: Interval, b: Interval, w: Interval, *, upper: bool, parallel: bool
) -> tuple[Tensor, ...]:
    """Slopes in a, b and w and an offset of a plane below (or above) the mixture.

    −w·a and w·b have two planes each (McCormick). All four sums are as far off in the centre, so
    the one that varies least over the box has the best extreme there.

    Args:
        parallel: the mean of the four, whose slopes are those of both sides.
    """
    if parallel:
        gap = w.radius * (a.radius + b.radius)
        middle = w.center * (a.center - b.center)
        offset = middle + gap if upper else middle - gap
        return 1.0 - w.center, w.center, b.center - a.center, offset
    taken = ((w.lower, a.upper), (w.upper, a.lower))
    given = ((w.lower, b.lower), (w.upper, b.upper))
    if upper:
        taken = ((w.lower, a.lower), (w.upper, a.upper))
        given = ((w.lower, b.upper), (w.upper, b.lower))
    best: tuple[Tensor, ...] | None = None
    least: Tensor | None = None
    for own, start in taken:
        for other, end in given:
            plane = (1.0 - own, other, end - start, own * start - other * end)
            sizes = (part.abs() * v.radius for part, v in zip(plane, (a, b, w), strict=False))
            span = sum(sizes, start=torch.zeros_like(end))
            if best is None or least is None:
                best, least = plane, span
                continue
            first = least <= span
            best = tuple(torch.where(first, x, y) for x, y in zip(best, plane, strict=True))
            least = torch.where(first, least, span)
    assert best is not None
    return best


def _backward(
    form: LinearForm,
    a: Any,
    b: Any,
    w: Any,
    *,
    operand: int,
    carry: bool,
    sample_dims: tuple[int, ...],
    parallel: bool = False,
    **_: Any,
) -> LinearForm:
    """a − w·a + w·b, each product by one of its planes."""
    sides = [as_interval(v) for v in (a, b, w)]
    positive, negative = torch.relu(form.coeff), -torch.relu(-form.coeff)
    planes = [_planes(*sides, upper=upper, parallel=parallel) for upper in (False, True)]
    slopes, offsets = [plane[:3] for plane in planes], [plane[3] for plane in planes]
    own = positive * slopes[0][operand] + negative * slopes[1][operand]
    if not carry:
        return LinearForm(own)
    # What fixed operands contribute is known.
    for at, value in enumerate((a, b, w)):
        if not isinstance(value, Interval):
            offsets = [
                offset + side[at] * value for offset, side in zip(offsets, slopes, strict=True)
            ]
    term = dot(positive, offsets[0], sample_dims) + dot(negative, offsets[1], sample_dims)
    return LinearForm(own, form.shifted(term))


def _sample(rng: random.Random) -> OpCase:
    shape = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 3)))
    bounded = rng.choice(((0, 1, 2), (0, 1, 2), (0, 2), (1, 2), (0, 1), (2,)))
    return OpCase((shape,) * 3, bounded=bounded)


register(
    OpSpec(
        "blend",
        Kind.COMPOSITE,
        _blend,
        interval=_interval,
        symbolic=_symbolic,
        relaxed=True,
        magnitude=_magnitude,
        batch=broadcast_batch,
        rounding=Rounding(terms=lambda *_, **__: 8),
        sound=_sound,
        backward=_backward,
        sample=_sample,
        summary="(1 − w)·a + w·b",
    )
)


def blend(b: Lowering, start: Any, end: Any, weight: Any) -> Value:
    """`start + weight·(end − start)` of values that broadcast."""
    return b.emit("blend", *b.broadcast(start, end, weight))
