"""Backward rules that account for their rounding, derived like the interval rules.

A form is measured from the centres of intervals (`SoundForm`), so a step needs those of operand
and result.

- An affine op v = Lx + b walks by its transpose: A(v − c') = AL(x − c) + A(Lc + b − c'). With m
  terms in a coefficient of AL, what is computed is off by E with |E||x − c| <= γ(m)|A||L|r. The
  residual Lc + b − c' is nearly 0 where c' was computed from c, and is bounded; otherwise it is
  computed and goes into the offset. All of this is one forward product for the op, shared by
  all rows, then one sum per row.
- An op that only moves elements, each to at most one place, is exact.
- An element-wise op walks by lines that hold exactly (`LINES`).

For any other op the walk stops at its interval, which is sound and looser.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm, Lines, identity_rows
from boundgraph.domains.rounding import PRECISIONS, Outward, Precision, grown
from boundgraph.domains.sound_form import Sample, SoundForm, signed, sum_sound, total_of
from boundgraph.ops._sound import STEP, Centre, interval_rule, offset_of
from boundgraph.ops._spec import Kind, OpSpec, Rule
from boundgraph.relaxations.outward import (
    leaky_relu_outward,
    relu_outward,
    sigmoid_outward,
    tanh_outward,
)


def _with_range(name: str, lines: Callable[[Outward, Outward], Lines]) -> Callable[..., Lines]:
    def rule(spec: OpSpec, x: Outward, p: str, *_: Tensor, **attrs: Any) -> Lines:
        interval = interval_rule(spec)
        assert interval is not None
        return lines(x, interval(x, terms=8, precision=p, **attrs))

    return rule


LINES: dict[str, Callable[..., Lines]] = {
    "relu": lambda spec, x, p, *slope: relu_outward(x, *slope),
    "leaky_relu": lambda spec, x, p, **attrs: leaky_relu_outward(x, **attrs),
    "sigmoid": _with_range("sigmoid", sigmoid_outward),
    "tanh": _with_range("tanh", tanh_outward),
}


def walks(spec: OpSpec, relaxed: bool, attrs: Any) -> bool:
    """Whether a form may be carried through the op with its rounding accounted for."""
    if relaxed:
        slope = attrs.get("negative_slope", 0.0)
        return spec.name in LINES and 0.0 <= slope <= 1.0
    if spec.backward is None or spec.magnitude is None:
        return False
    return spec.kind in (Kind.AFFINE, Kind.STRUCTURAL, Kind.BILINEAR)


def backward_rule(spec: OpSpec) -> Rule | None:
    """The rule of `backward.sound.NAME`."""
    if spec.name in LINES:
        return _through_lines(spec)
    return _through_transpose(spec) if spec.backward is not None else None


def _through_lines(spec: OpSpec) -> Rule:
    def rule(
        form: SoundForm,
        pre: Interval,
        *rest: Any,
        operand: int,
        carry: bool,
        shapes: Any,
        target: Any,
        sample_dims: tuple[int, ...],
        elements: int,
        shared: bool,
        precision: str,
        **attrs: Any,
    ) -> SoundForm:
        _, attrs = _split(attrs)
        *slope, own = rest
        p = PRECISIONS[precision]
        box, result = Outward.of(pre, p), Outward.of(own, p)
        lines = LINES[spec.name](spec, box, precision, *slope, **attrs)
        return form.through_outward(lines, box, result, Sample(sample_dims, elements, shared))

    return rule


def _through_transpose(spec: OpSpec) -> Rule:
    def rule(
        form: SoundForm,
        *context: Any,
        operand: int,
        carry: bool,
        shapes: Any,
        target: Any,
        sample_dims: tuple[int, ...],
        elements: int,
        shared: bool,
        precision: str,
        **attrs: Any,
    ) -> SoundForm:
        assert spec.backward is not None
        step, attrs = _split(attrs)
        # Joins are told which of their operands are plain.
        own = {name: value for name, value in attrs.items() if name != "plain"}
        at = _Step(spec, operand, PRECISIONS[precision], context, own, **step)
        geometry = {"shapes": shapes, "target": target, "sample_dims": sample_dims}
        coeff = spec.backward(
            form, *at.plain, operand=operand, carry=False, **geometry, **attrs
        ).coeff
        kept = form if carry else SoundForm(form.coeff, None, None, at.p)
        if at.moves and (at.direct or not carry):
            return SoundForm(coeff, kept.offset, kept.error, at.p)
        shape = Sample(sample_dims, elements, shared)
        weight, offset = at.weight(carry), kept.offset
        if carry and not at.direct:
            middle = at.residual()
            weight = weight + middle.abs() * at.p.gamma(elements + 8)
            offset = form.shifted(shape.product(form.coeff, middle))
        lost = shape.above(form.coeff.abs(), grown(weight, at.p), at.p)
        count = Sample(at.operand_dims, elements)
        rest = count.underflow(at.boxes[at.position].radius, at.terms, at.p)
        return kept.charged(LinearForm(coeff, offset), lost, rest)

    return rule


def _split(attrs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is told of the step, and the op's own attributes."""
    return (
        {name: attrs[name] for name in STEP},
        {name: value for name, value in attrs.items() if name not in STEP},
    )


class _Step:
    """One step through an affine op: its operands, and what rounding may cost for each
    element of the result.

    Args:
        context: plain operands, intervals of the bounded ones, interval of the result.
        bounded: positions of the bounded operands.
        moves: the op takes each element to at most one place.
        direct: the result's centre was computed from those of the operands.
        terms: roundings in a coefficient of the transpose.
        full: roundings of the op itself.
        wide: centres go through the op in float64.
        operand_dims: of the operand's samples.
    """

    def __init__(
        self,
        spec: OpSpec,
        operand: int,
        p: Precision,
        context: Sequence[Any],
        attrs: Any,
        bounded: tuple[int, ...],
        moves: bool,
        direct: bool,
        terms: int,
        full: int,
        wide: bool,
        operand_dims: tuple[int, ...],
    ) -> None:
        count = len(context) - len(bounded) - 1
        self.spec, self.p, self.attrs, self.bounded = spec, p, attrs, bounded
        self.moves, self.direct, self.terms = moves, direct, terms
        self.center, self.operand_dims = Centre(full, full, wide=wide), operand_dims
        self.position = bounded.index(operand)
        self.plain = list(context[:count])
        self.boxes = [Outward.of(box, p) for box in context[count:-1]]
        self.result = Outward.of(context[-1], p)

    def weight(self, carry: bool) -> Tensor:
        """What rounding may cost for each element of the result.

        γ(terms)·|L|r of the coefficients of this operand and, where the residual is charged
        here, G·(|L||c| + |b|) for that.
        """
        p, spec, reach, full = self.p, self.spec, self.boxes[self.position].radius, self.center.full
        if self.moves:
            return self.result.radius * 0.0 + 16.0 * p.tiny
        spread, residual = p.gamma(self.terms + 4), carry and spec.kind is not Kind.STRUCTURAL
        share = self.center.share(p) if residual else 0.0
        # The size is a sum that lost up to γ(full) of itself.
        gain = 1.0 + 2.0 * p.gamma(full + 8)
        if spec.centred:
            weight = self._size(self._sizes(reach * spread, share)) * gain
        else:
            # It may add its constants, so that its magnitude does not scale.
            weight = self._size(self._sizes(reach, 0.0)) * (gain * spread)
            if residual:
                weight = weight + self._size(self._sizes(reach * 0.0, 1.0)) * (gain * share)
        weight = weight + 16.0 * (full + self.terms + 8) * p.tiny
        if residual and spec.boundable == (0,) and spec.kind is Kind.AFFINE:
            offset = offset_of(spec, self.boxes[0].center, self.plain, self.attrs)
            weight = weight if offset is None else weight + offset * share
        if residual and self.center.wide and self.direct:
            weight = weight + self.result.center.abs() * (2.0 * p.unit)
        if spec.rounding.scales:
            weight = weight + (reach + self.boxes[0].center.abs()) * (16.0 * p.tiny)
        return weight

    def _sizes(self, reach: Tensor, share: float) -> list[Tensor]:
        """Of each bounded operand `share` of its centre, and `reach` of the one walked to."""
        sizes = []
        for i, box in enumerate(self.boxes):
            own = reach if i == self.position else box.radius * 0.0
            sizes.append(own + box.center.abs() * share if share else own)
        return sizes

    def residual(self) -> Tensor:
        """L c + b − c', computed; it is off by `weight` and by one rounding."""
        values = self._in_order(self.plain, [box.center for box in self.boxes])
        own = self.result.center
        if self.center.wide:
            # The difference before it is rounded: with both near each other nothing is lost.
            # Labels are compared with numbers of classes, which as doubles they may be, too.
            values, own = [value.double() for value in values], own.double()
        return (self.spec.concrete(*values, **self.attrs) - own).to(self.result.center.dtype)

    def _size(self, sizes: list[Tensor]) -> Tensor:
        assert self.spec.magnitude is not None
        plain = self.plain
        if not self.spec.centred and self.spec.kind is not Kind.STRUCTURAL:
            plain = [other.abs() for other in plain]
        return self.spec.magnitude(*self._in_order(plain, sizes), **self.attrs)  # type: ignore[no-any-return]

    def _in_order(self, plain: Sequence[Tensor], of_bounded: Sequence[Tensor]) -> list[Tensor]:
        rest, own = iter(plain), dict(zip(self.bounded, of_bounded, strict=True))
        count = len(plain) + len(of_bounded)
        return [own[i] if i in own else next(rest) for i in range(count)]


def _seed(
    own: Interval, *, shape: tuple[int, ...], batch_dim: int | None, precision: str
) -> SoundForm:
    """One row for each element: its offset is the element's centre."""
    p = PRECISIONS[precision]
    center = Outward.of(own, p).center
    if batch_dim is None:
        offset = center.reshape(-1)
    else:
        rows = center.movedim(batch_dim, 0)
        offset = rows.flatten(1).transpose(0, 1) if len(shape) > 1 else rows.unsqueeze(0)
    return SoundForm(identity_rows(center, shape, batch_dim), offset, None, p)


def _merge(
    *parts: Any, dims: tuple[int, ...], elements: int, shared: bool, precision: str
) -> SoundForm:
    *forms, box = parts
    outward = Outward.of(box, PRECISIONS[precision])
    return sum_sound(tuple(forms), outward, Sample(dims, elements, shared))


def _sign(form: SoundForm, *, precision: str) -> SoundForm:
    return signed(form)


def least_rows(
    ends: Sequence[Any],
    dims: Sequence[tuple[int, ...]],
    norms: Sequence[float],
    elements: Sequence[int],
    shared: Sequence[bool],
    precision: str,
    samples: bool,
) -> Tensor:
    """Below the sum of the least values of forms over their intervals, and balls in these.

    Args:
        ends: form, interval, form, interval, …; a ball's centre and radius follow its interval.
        dims, elements, shared: of a sample of each, see `Sample`.
        norms: of each end, 0 for a box; all boxes where empty.
        samples: values have a batch dimension.
    """
    p, parts, rest = PRECISIONS[precision], [], iter(ends)
    shapes = [Sample(*of) for of in zip(dims, elements, shared, strict=True)]
    for shape, norm in zip(shapes, norms or (0.0,) * len(shapes), strict=True):
        form, box = next(rest), Outward.of(next(rest), p)
        part = form.least_over(box, shape)
        if norm:
            middle, reach = next(rest), next(rest)
            over_ball = form.least_over_ball(box, middle, reach, norm, shape, samples=samples)
            part = torch.maximum(part, over_ball)
        parts.append(part)
    return total_of(parts, p)


BOUND_ONLY: dict[str, Rule] = {
    "backward.sound.seed": _seed,
    "backward.sound.merge": _merge,
    "backward.sound.sign": _sign,
}
