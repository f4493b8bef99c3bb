"""Backward rules that account for their rounding, derived like the interval rules.

- An affine op walks by its transpose. With m terms in a coefficient of the transpose, the
  computed coefficients are off by E with |E·x| <= γ(m)·|A|·(|L|·mag(x)): one forward product
  |L|·mag(x) for the op, shared by all rows, then one sum per row. Offsets add γ(N)·|A||b|.
- An op that only moves elements, each to at most one place, is exact.
- An element-wise op walks by lines that hold exactly (`LINES`).

For any other op the walk stops at its interval, which is sound and looser.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm, Lines, identity_rows
from boundgraph.domains.rounding import PRECISIONS, Outward, Precision
from boundgraph.domains.sound_form import (
    SoundForm,
    signed,
    sum_sound,
    total_of,
    underflow,
    upward_sum,
)
from boundgraph.ops._sound import _offset, interval_rule
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
        *slope: Tensor,
        operand: int,
        carry: bool,
        shapes: Any,
        target: Any,
        sample_dims: tuple[int, ...],
        bounded: tuple[int, ...],
        moves: bool,
        terms: int,
        elements: int,
        operand_dims: tuple[int, ...],
        precision: str,
        **attrs: Any,
    ) -> SoundForm:
        box = Outward.of(pre, PRECISIONS[precision])
        lines = LINES[spec.name](spec, box, precision, *slope, **attrs)
        return form.through_outward(lines, box, sample_dims, elements)

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
        bounded: tuple[int, ...],
        moves: bool,
        terms: int,
        elements: int,
        operand_dims: tuple[int, ...],
        precision: str,
        **attrs: Any,
    ) -> SoundForm:
        assert spec.backward is not None
        p = PRECISIONS[precision]
        count = len(context) - len(bounded)
        plain, boxes = context[:count], [Outward.of(box, p) for box in context[count:]]
        geometry = {"shapes": shapes, "target": target, "sample_dims": sample_dims}
        new: LinearForm = spec.backward(
            form, *plain, operand=operand, carry=carry, **geometry, **attrs
        )
        kept = form if carry else SoundForm(form.coeff, None, None, p)
        if moves:
            return SoundForm(new.coeff, new.offset, kept.error, p)
        sizes = _in_order(plain, boxes, bounded)
        weight = _weight(spec, sizes, attrs, terms, elements, p)
        lost = upward_sum(form.coeff.abs() * weight, sample_dims, elements, p)
        reach = boxes[bounded.index(operand)].magnitude()
        return kept.charged(new, lost, underflow(reach, operand_dims, terms, elements, p))

    return rule


def _in_order(
    plain: Sequence[Tensor], boxes: Sequence[Outward], bounded: tuple[int, ...]
) -> list[Tensor]:
    """Absolute values of all operands."""
    rest, own = iter(plain), dict(zip(bounded, boxes, strict=True))
    return [own[i].magnitude() if i in own else next(rest) for i in range(len(plain) + len(boxes))]


def _weight(
    spec: OpSpec, sizes: list[Tensor], attrs: Any, terms: int, elements: int, p: Precision
) -> Tensor:
    """What a coefficient of 1 on each element of the result may cost."""
    assert spec.magnitude is not None
    if spec.boundable == (0,):
        first, *rest = sizes
        others = rest if spec.centred else [other.abs() for other in rest]
        weight = spec.magnitude(first, *others, **attrs) * p.gamma(terms)
        offset = _offset(spec, first, rest, attrs)
        if offset is not None:
            weight = weight + offset * p.gamma(elements + 16)
        if spec.rounding.scales:
            weight = weight + first * (16.0 * p.tiny)
        return weight  # type: ignore[no-any-return]
    return spec.magnitude(*(s.abs() for s in sizes), **attrs) * p.gamma(terms)  # type: ignore[no-any-return]


def _seed(
    like: Interval, *, shape: tuple[int, ...], batch_dim: int | None, precision: str
) -> SoundForm:
    return SoundForm(
        identity_rows(like.any_part, shape, batch_dim), None, None, PRECISIONS[precision]
    )


def _merge(*parts: Any, dims: tuple[int, ...], elements: int, precision: str) -> SoundForm:
    *forms, box = parts
    return sum_sound(tuple(forms), Outward.of(box, PRECISIONS[precision]), dims, elements)


def _sign(form: SoundForm, *, precision: str) -> SoundForm:
    return signed(form)


def least_rows(
    ends: Sequence[Any], dims: Sequence[tuple[int, ...]], elements: Sequence[int], precision: str
) -> Tensor:
    """Below the sum of the least values of forms over their intervals."""
    p = PRECISIONS[precision]
    parts = [
        form.least_over(Outward.of(box, p), over, count)
        for form, box, over, count in zip(ends[::2], ends[1::2], dims, elements, strict=True)
    ]
    return total_of(parts, p)


BOUND_ONLY: dict[str, Rule] = {
    "backward.sound.seed": _seed,
    "backward.sound.merge": _merge,
    "backward.sound.sign": _sign,
}
