"""Symbolic rules that account for their rounding, derived like the interval rules.

- An affine op acts on centre and generators; with n terms in a sum these are off by γ(n)|L| times
  their sizes, which goes into the error, itself propagated by |L|: one more product for the op.
  Centres go through long sums in float64 (`wide`), generators through linear layers in turns.
- An op that only moves elements is exact.
- An element-wise op with lines that hold exactly maps by those of one slope; the new symbols take
  all errors so far.

From any other op the value starts anew from its sound interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.rounding import PRECISIONS, Outward, Precision, grown
from boundgraph.domains.sound_symbolic import SoundSymbolic, fresh
from boundgraph.domains.symbolic import Symbolic
from boundgraph.ops._sound import Centre, offset_of
from boundgraph.ops._sound_backward import LINES
from boundgraph.ops._spec import Kind, OpSpec, Rule

SYMBOLS = "symbols"
# Affine ops without the centred rule, with the constant operands that their linear part reads.
_LINEAR_PART: dict[str, tuple[int, ...]] = {
    "add": (), "sub": (), "mul": (0, 1), "div": (1,), "margin": (1,), "linear_margin": (1, 3),
}  # fmt: skip


def carries(spec: OpSpec, relaxed: bool, attrs: Any) -> bool:
    """Whether symbols may be carried through the op with its rounding accounted for."""
    if relaxed:
        return spec.name in LINES and 0.0 <= attrs.get("negative_slope", 0.0) <= 1.0
    if spec.symbolic is None or spec.magnitude is None:
        return False
    return spec.kind is Kind.STRUCTURAL or spec.centred or spec.name in _LINEAR_PART


def symbolic_rule(spec: OpSpec) -> Rule | None:
    """The rule of `symbolic.sound.NAME`."""
    if spec.name in LINES:
        return _through_lines(spec)
    return _linear(spec) if carries(spec, False, {}) else None


def _through_lines(spec: OpSpec) -> Rule:
    def rule(
        x: SoundSymbolic,
        pre: Interval,
        *,
        block: str,
        batch_dim: int | None,
        features: tuple[int, ...],
        symbols: int,
        precision: str,
        terms: int,
        **attrs: Any,
    ) -> SoundSymbolic:
        box = Outward.of(pre, PRECISIONS[precision])
        lines = LINES[spec.name](spec, box, precision, **attrs)
        return x.through_lines(lines, symbols, block, batch_dim, features)

    return rule


def _linear(spec: OpSpec) -> Rule:
    def rule(
        *operands: Any, terms: int, precision: str, symbols: int, **attrs: Any
    ) -> SoundSymbolic:
        p = PRECISIONS[precision]
        how, attrs = Centre.of(terms, attrs)
        assert spec.symbolic is not None
        exact: Symbolic = spec.symbolic(*operands, **attrs)
        center, blocks = exact.center, exact.blocks
        if how.wide:
            parts = [v.center if isinstance(v, Symbolic) else v for v in operands]
            center = how.run(spec, parts, attrs)
        if how.parts > 1:
            blocks = _in_turns(spec, operands, how.parts, attrs)
        if spec.kind is Kind.STRUCTURAL:
            error = _moved(spec, operands, attrs)
        else:
            error = _error(spec, operands, how, symbols, attrs, p)
            if how.wide:
                error = error + center.abs() * (2.0 * p.unit)
            error = grown(error, p)
        return SoundSymbolic(center, blocks, error, p)

    return rule


def _in_turns(spec: OpSpec, operands: Sequence[Any], parts: int, attrs: Any) -> dict[str, Tensor]:
    """Generators through a linear layer, whose sums are taken over one part of it at a time."""
    x, weight, *rest = operands
    assert spec.symbolic is not None
    total: dict[str, Tensor] = {}
    for k in range(parts):

        def part(of: Tensor, k: int = k) -> Tensor:
            return of.unflatten(-1, (parts, -1)).select(-2, k)

        found = spec.symbolic(Symbolic.map(x, part, part), part(weight), *rest, **attrs)
        total = {n: total[n] + g if n in total else g for n, g in found.blocks.items()}
    return total


def _moved(spec: OpSpec, operands: Any, attrs: Any) -> Tensor | None:
    """Errors move with their elements."""
    assert spec.magnitude is not None
    symbolic = [v for v in operands if isinstance(v, SoundSymbolic)]
    if all(v.error is None for v in symbolic):
        return None
    sizes = []
    for value in operands:
        if isinstance(value, SoundSymbolic):
            sizes.append(_zero_or(value.error, value.center))
        else:
            # What a join takes from a constant has no error; an index moves as it is.
            sizes.append(0.0 * value if spec.boundable is None else value)
    return spec.magnitude(*sizes, **attrs)  # type: ignore[no-any-return]


def _zero_or(error: Tensor | None, like: Tensor) -> Tensor:
    return 0.0 * like.abs() if error is None else error


def _error(
    spec: OpSpec, operands: Any, how: Centre, symbols: int, attrs: Any, p: Precision
) -> Tensor:
    """The errors of the operands through |L|, and what the op's own roundings cost."""
    assert spec.magnitude is not None
    lost = 2.0 * p.gamma(how.full + 8)
    share, own = how.share(p), p.gamma(-(-how.full // how.parts) + how.parts + 4)
    underflow = 16.0 * (symbols + 4) * (how.full + 4) * p.tiny
    sizes = {}
    for i, value in enumerate(operands):
        if isinstance(value, SoundSymbolic):
            reach = value.reach(symbols)
            sizes[i] = (value.center.abs(), _zero_or(reach, value.center), value.error)
    if spec.centred:
        size, reach, error = sizes[0]
        spread = size * share + reach * own + 16.0 * (symbols + 4) * p.tiny
        if error is not None:
            spread = spread + error
        total = spec.magnitude(spread * (1.0 + lost), *operands[1:], **attrs) + underflow
        offset = offset_of(spec, operands[0].center, operands[1:], attrs)
        if offset is not None:
            total = total + offset * (share * (1.0 + lost))
        if spec.rounding.scales:
            total = total + (size + reach) * (16.0 * p.tiny)
        return total  # type: ignore[no-any-return]
    keep = _LINEAR_PART[spec.name]

    def through(values: dict[int, Tensor], linear: bool) -> Tensor:
        given = [
            values[i] if i in values else v.abs() if i in keep or not linear else 0.0 * v
            for i, v in enumerate(operands)
        ]
        return spec.magnitude(*given, **attrs)  # type: ignore[no-any-return,misc]

    centers = through({i: size for i, (size, _, _) in sizes.items()}, False)
    generators = through({i: reach for i, (_, reach, _) in sizes.items()}, True)
    total = centers * ((share if how.wide else own) * (1.0 + lost))
    total = total + generators * (own * (1.0 + lost)) + underflow
    if any(error is not None for _, _, error in sizes.values()):
        errors = {i: _zero_or(error, size) for i, (size, _, error) in sizes.items()}
        total = total + through(errors, True) * (1.0 + lost)
    return total


def _fresh(
    x: Interval, *, block: str, batch_dim: int | None, features: tuple[int, ...], precision: str
) -> SoundSymbolic:
    return fresh(Outward.of(x, PRECISIONS[precision]), block, batch_dim, features)


def _concretize(x: SoundSymbolic, *, symbols: int) -> Outward:
    return x.enclosure(symbols)


BOUND_ONLY: dict[str, Rule] = {
    "symbolic.sound.fresh": _fresh,
    "symbolic.sound.concretize": _concretize,
}
