"""Check the rules of a registered op against what the op computes."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boundgraph import ops
from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm
from boundgraph.domains.symbolic import Symbolic
from boundgraph.errors import ConfigError, SoundnessError
from boundgraph.ops import Kind, OpSpec
from boundgraph.ops._spec import OpCase, batch_first
from boundgraph.ops.custom import Registration
from boundgraph.testing._points import sample_point
from boundgraph.testing._rounding import (
    CONVERSIONS,
    allowance,
    excess,
    gamma,
    largest,
    unit_roundoff,
)


@dataclass(frozen=True)
class DrawnCase:
    """A use of an op: its operands' boxes (Interval where bounded) and attributes."""

    spec: OpSpec
    case: OpCase
    operands: tuple[Any, ...]

    def point(self, rng: random.Random) -> tuple[Tensor, ...]:
        """Operands within the boxes: a corner, a random point or a mix of both."""
        corner = rng.random() < 0.4
        generator = torch.Generator().manual_seed(rng.getrandbits(40))
        return tuple(
            sample_point(operand, generator, corner) if isinstance(operand, Interval) else operand
            for operand in self.operands
        )

    @property
    def attrs(self) -> dict[str, Any]:
        return self.case.attrs

    def __str__(self) -> str:
        shapes = [tuple(shape) for shape in self.case.shapes]
        return f"{self.spec.name}{shapes} {self.attrs} on {self.operands}"


def draw_case(
    spec: OpSpec, rng: random.Random, dtype: torch.dtype = torch.float64, *, scale: float = 1.0
) -> DrawnCase:
    """Draw a use of an op with random boxes: zero, hair-thin, moderate and wide, or mixed.

    Args:
        spec: an op with a sampler.
        rng: source of randomness.
        dtype: of the operands.
        scale: multiplies the bounded operands.
    """
    if spec.sample is None:
        raise ConfigError(f"op {spec.name!r} has no sampler")
    case = spec.sample(rng)
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    operands: list[Any] = []
    given = dict(case.given)
    for position, shape in enumerate(case.shapes):
        if position in given:
            own = given[position]
            operands.append(own.to(dtype) if own.is_floating_point() else own)
        elif shape == (-1,):
            batch = case.shapes[0][0]
            operands.append(torch.randint(case.attrs["classes"], (batch,), generator=generator))
        elif position in dict(case.indices):
            count = dict(case.indices)[position]
            operands.append(torch.randint(count, shape, generator=generator))
        elif position in case.bounded:
            operands.append(_draw_box(shape, case, rng, generator, dtype, scale))
        elif position in case.masks:
            operands.append(torch.rand(shape, generator=generator) < 0.5)
        elif position in case.positive:
            operands.append(_uniform(shape, 0.25, 2.0, generator, dtype))
        else:
            operands.append(_uniform(shape, case.low, case.high, generator, dtype))
    return DrawnCase(spec, case, tuple(operands))


def _uniform(
    shape: tuple[int, ...], low: float, high: float, generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=dtype) * (high - low) + low


def _draw_box(
    shape: tuple[int, ...],
    case: OpCase,
    rng: random.Random,
    generator: torch.Generator,
    dtype: torch.dtype,
    scale: float,
) -> Interval:
    ends = [_uniform(shape, case.low, case.high, generator, dtype) for _ in range(2)]
    lower, upper = torch.minimum(*ends), torch.maximum(*ends)
    kind = rng.choice(("wide", "zero", "thin", "small", "mixed", "touching"))
    shares = {"wide": 1.0, "zero": 0.0, "thin": 1e-9, "small": 0.05, "touching": 1.0}
    if kind == "mixed":
        picks = torch.randint(4, shape, generator=generator)
        share = torch.tensor([1.0, 0.0, 1e-9, 0.05], dtype=dtype)[picks]
    else:
        share = torch.full(shape, shares[kind], dtype=dtype)
    upper = torch.maximum(lower, lower + share * (upper - lower))
    if kind == "touching" and case.low <= 0.0 <= case.high:
        # An end exactly at 0, where rectifiers and poles change.
        at_zero = torch.rand(shape, generator=generator) < 0.5
        lower = torch.where(at_zero & (lower > 0), 0.0, lower)
        upper = torch.where(at_zero & (upper < 0), -0.0, upper)
        lower = torch.where(~at_zero & (upper > 0), 0.0, lower)
    return Interval(lower * scale, upper * scale)


def check_op(
    op: str | OpSpec | Registration,
    *,
    cases: int = 50,
    points: int = 8,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    scale: float = 1.0,
) -> None:
    """Check the interval, symbolic and backward rules of an op against what it computes.

    Args:
        op: a registered op, its name, or what `register_op` returned.
        cases: random uses to draw.
        points: points per use.
        seed: of the draws; printed on failure.
        dtype: the rules run in it; the op itself runs in float64.
        scale: multiplies bounded operands, to try huge and tiny values.

    Raises:
        SoundnessError: with the use, the seed and by how much a rule fails to enclose.
        ConfigError: an unknown op, or one without a sampler.
    """
    known = op.spec if isinstance(op, Registration) else op
    spec = ops.get(known) if isinstance(known, str) else known
    if spec is None:
        raise ConfigError(f"no op {op!r}; `boundgraph ops` lists all")
    for index in range(cases):
        rng = random.Random(f"{seed}/{index}")
        drawn = draw_case(spec, rng, dtype, scale=scale)
        for check in _CHECKS:
            try:
                check(drawn, rng, points)
            except SoundnessError as error:
                error.add_note(f"reproduce: check_op({spec.name!r}, seed={seed}), case {index}")
                raise


def check_interval_rule(drawn: DrawnCase, rng: random.Random, points: int = 8) -> None:
    """The interval rule encloses the op at points of the boxes, up to declared rounding.

    Where a box leaves the domain of a partial op, the rule must say so by NaN.
    """
    spec = drawn.spec
    if spec.interval is None:
        return
    result = spec.interval(*drawn.operands, **drawn.attrs)
    shape = spec.concrete(*drawn.point(rng), **drawn.attrs).shape
    if result.lower.shape != shape or result.upper.shape != shape:
        raise SoundnessError(
            f"the interval rule of {spec.name!r} gives {list(result.lower.shape)} and "
            f"{list(result.upper.shape)}, the op {list(shape)}: {drawn}"
        )
    outside = _leaves_domain(drawn)
    if outside is not None:
        hidden = outside & ~(torch.isnan(result.lower) & torch.isnan(result.upper))
        _require(drawn, "interval", torch.where(hidden, math.inf, 0.0))
        result = Interval(
            torch.where(outside, -math.inf, result.lower),
            torch.where(outside, math.inf, result.upper),
        )
    allowed = allowance(spec, drawn.operands, drawn.attrs, result)
    crossed = (result.lower - result.upper - 2.0 * allowed).clamp(min=0.0).nan_to_num(0.0)
    _require(drawn, "interval", crossed)
    for _ in range(points):
        point = drawn.point(rng)
        _require(drawn, "interval", excess(_reference(spec, point, drawn.attrs), result, allowed))


def check_samples(drawn: DrawnCase, rng: random.Random, points: int = 8) -> None:
    """An op that acts on each sample by itself gives one the same result among any others."""
    spec, first = drawn.spec, drawn.operands[0]
    if spec.batch is not batch_first or not isinstance(first, Interval) or not first.lower.dim():
        return
    result = spec.interval(*drawn.operands, **drawn.attrs) if spec.interval else None
    if result is None or len(result.lower) != len(first.lower):
        return
    allowed = allowance(spec, drawn.operands, drawn.attrs, result)[:1]
    (own, *rest), (other, *_) = drawn.point(rng), drawn.point(rng)
    among = torch.cat([own[:1], other[1:]])
    values = [_reference(spec, (x, *rest), drawn.attrs)[:1] for x in (own, among)]
    _require(drawn, "batch", excess(values[0], Interval.point(values[1]), allowed))


def _leaves_domain(drawn: DrawnCase) -> Tensor | None:
    """Where the box of a partial op's operand has an end outside its domain, an interval."""
    if not drawn.spec.partial:
        return None
    box, *rest = drawn.operands
    ends = (_reference(drawn.spec, (end, *rest), drawn.attrs) for end in (box.lower, box.upper))
    first, last = (torch.isnan(end) for end in ends)
    return first | last


def check_symbolic_rule(drawn: DrawnCase, rng: random.Random, points: int = 8) -> None:
    """The symbolic rule encloses the op at points of the zonotope, up to declared rounding."""
    spec = drawn.spec
    if spec.symbolic is None:
        return
    if spec.kind is Kind.ELEMENTWISE:
        _check_lines(drawn, rng, points)
    else:
        _check_zonotope(drawn, rng, points)


def _reference(spec: OpSpec, point: Sequence[Tensor], attrs: Mapping[str, Any]) -> Tensor:
    exact = [part.double() if part.is_floating_point() else part for part in point]
    return spec.concrete(*exact, **attrs)


def _require(drawn: DrawnCase, rule: str, found: Tensor) -> None:
    if bool((found > 0).any()):
        raise SoundnessError(
            f"the {rule} rule of {drawn.spec.name!r} misses by {float(found.max()):.3g}, beyond "
            f"its declared rounding, at {int((found > 0).sum())} element(s): {drawn}"
        )


def relaxed_lines(
    spec: OpSpec, pre: Interval, attrs: Mapping[str, Any], *constants: Tensor
) -> tuple[Tensor, ...]:
    """Slope, middle and half gap of an element-wise op's symbolic rule over `pre`."""
    assert spec.symbolic is not None
    shape = tuple(pre.lower.shape)
    probe = Symbolic(torch.zeros_like(pre.lower), {"probe": torch.ones_like(pre.lower)[None]})
    out = spec.symbolic(
        probe, *constants, pre, block="new", batch_dim=None, features=shape, **attrs
    )
    return out.blocks["probe"][0], out.center, out.blocks["new"].abs().sum(0)


def _check_lines(drawn: DrawnCase, rng: random.Random, points: int) -> None:
    spec, (pre, *constants) = drawn.spec, drawn.operands
    slope, middle, half_gap = relaxed_lines(spec, pre, drawn.attrs, *constants)
    dtype = pre.lower.dtype
    wide = [part.double() for part in (slope, middle, half_gap)]
    for _ in range(points):
        (x, *rest) = drawn.point(rng)
        value = _reference(spec, (x, *rest), drawn.attrs)
        line = wide[0] * x.double() + wide[1]
        enclosure = Interval(line - wide[2], line + wide[2])
        # Offsets are formed from f(end) − slope·end: a few roundings of those products.
        size = value.abs() + wide[0].abs() * largest(pre).double() + wide[1].abs() + wide[2]
        u, tiny = unit_roundoff(dtype), float(torch.finfo(dtype).tiny)
        allowed = (2.0 * spec.rounding.ulps + 2.0 * CONVERSIONS) * u * size + CONVERSIONS * tiny
        allowed = allowed + allowance(spec, drawn.operands, drawn.attrs, Interval.point(value))
        _require(drawn, "symbolic", excess(value, enclosure, allowed))


def check_backward_rule(drawn: DrawnCase, rng: random.Random, points: int = 8) -> None:
    """The backward rule gives a lower bound of rows of the result, at points of the boxes.

    For random rows it must hold that `Σ row·f(x) >= Σ coeff·x + offset`.
    """
    spec = drawn.spec
    if spec.backward is None:
        return
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    bounded = [i for i, operand in enumerate(drawn.operands) if isinstance(operand, Interval)]
    shapes = tuple(tuple((v.lower if isinstance(v, Interval) else v).shape) for v in drawn.operands)
    target = tuple(spec.concrete(*drawn.point(rng), **drawn.attrs).shape)
    dtype = drawn.operands[bounded[0]].lower.dtype
    rows = torch.randn((3, *target), generator=generator, dtype=dtype)
    offset = torch.randn(3, generator=generator, dtype=dtype)
    relaxed = spec.reads_intervals(len(bounded))
    context = [v for i, v in enumerate(drawn.operands) if relaxed or i not in bounded]
    options: dict[str, Any] = {**drawn.attrs, "shapes": shapes, "target": target}
    options["sample_dims"] = tuple(range(1, len(target) + 1))
    if spec.name in ("cat", "stack"):
        options["plain"] = tuple(i for i in range(len(shapes)) if i not in bounded)
    forms = {
        position: spec.backward(
            LinearForm(rows, offset),
            *context,
            operand=position,
            carry=position == bounded[0],
            **options,
        )
        for position in bounded
    }
    found = _interval_of(drawn)
    if not bool((found.lower.isfinite() & found.upper.isfinite()).all()):
        return  # a form through an infinite end is infinite or NaN, which certifies nothing
    for _ in range(points):
        point = drawn.point(rng)
        value = _reference(spec, point, drawn.attrs)
        exact = _by_row(rows.double() * value) + offset.double()
        size = _by_row((rows.double() * value).abs()) + offset.abs().double()
        line = torch.zeros_like(exact)
        for position, form in forms.items():
            part = form.coeff.double() * point[position].double()
            line = line + _by_row(part)
            # The products cancel against each other; their sizes say how far they round.
            reach = form.coeff.double().abs() * largest(drawn.operands[position]).double()
            size = size + _by_row(reach)
            if form.offset is not None:
                line = line + form.offset.double()
                size = size + form.offset.double().abs()
        terms = value.numel() + sum(part.numel() for part in point) + CONVERSIONS
        inner = spec.rounding.terms(*point, **drawn.attrs) if spec.rounding.terms else 0
        steps = terms + inner + 2 * math.ceil(spec.rounding.ulps)
        allowed = gamma(2 * steps, dtype) * size + terms * float(torch.finfo(dtype).tiny)
        allowed = allowed + _rows_allowance(drawn, rows)
        _require(
            drawn,
            "backward",
            excess(exact, Interval(line, torch.full_like(line, math.inf)), allowed),
        )


def _interval_of(drawn: DrawnCase) -> Interval:
    assert drawn.spec.interval is not None
    return drawn.spec.interval(*drawn.operands, **drawn.attrs)  # type: ignore[no-any-return]


def _by_row(values: Tensor) -> Tensor:
    """Sums over all dimensions but the first; there may be no other."""
    return values.reshape(len(values), -1).sum(1)


def _rows_allowance(drawn: DrawnCase, rows: Tensor) -> Tensor:
    """The declared rounding of the op itself, through the rows."""
    spec = drawn.spec
    result = _interval_of(drawn)
    own = allowance(spec, drawn.operands, drawn.attrs, result).double()
    return _by_row(rows.double().abs() * own.nan_to_num(0.0))


def _as_symbolic(box: Interval, position: int) -> Symbolic:
    """A zonotope over the box, with a second block that all elements share."""
    n = box.center.numel()
    own = torch.diag(box.radius.reshape(-1)).reshape((n, *box.center.shape)) * 0.75
    return Symbolic(box.center, {f"x{position}": own, "shared": box.radius[None] * 0.25})


def _at(value: Any, symbols: Mapping[str, Tensor]) -> Tensor:
    if not isinstance(value, Symbolic):
        return value
    out = value.center
    for name, block in value.blocks.items():
        if name in symbols:
            weights = symbols[name].to(block.dtype).reshape(-1, *(1,) * (block.dim() - 1))
            out = out + (block * weights).sum(0)
    return out


def _check_zonotope(drawn: DrawnCase, rng: random.Random, points: int) -> None:
    spec = drawn.spec
    assert spec.symbolic is not None
    values: list[Any] = [
        _as_symbolic(operand, i) if isinstance(operand, Interval) else operand
        for i, operand in enumerate(drawn.operands)
    ]
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    out_shape = spec.concrete(*drawn.point(rng), **drawn.attrs).shape
    extra: dict[str, Any] = {}
    if spec.relaxed:
        extra = {"block": "new", "batch_dim": None, "features": tuple(out_shape)}
        pre = [v.concretize() for v in values if isinstance(v, Symbolic)]
        needed = pre if spec.reads_intervals(len(pre)) else ()
        result = spec.symbolic(*values, *needed, **extra, **drawn.attrs)
    else:
        result = spec.symbolic(*values, **drawn.attrs)
    boxes = [v.concretize() if isinstance(v, Symbolic) else v for v in values]
    assert spec.interval is not None
    allowed = allowance(spec, boxes, drawn.attrs, spec.interval(*boxes, **drawn.attrs))
    terms = sum(v.blocks[k].shape[0] for v in values if isinstance(v, Symbolic) for k in v.blocks)
    # Both sides also sum over the symbols, which declared rounding says nothing about.
    size = largest(result.concretize())
    if spec.kind is Kind.SELECTION and spec.magnitude is not None:
        # Its lines add shares of all operands, of which the result is as small as one.
        size = size + spec.magnitude(*map(largest, boxes))
    steps = gamma(2 * terms + CONVERSIONS, allowed.dtype)
    allowed = allowed.double() + steps * size + allowed
    names = {k: v.shape[0] for s in values if isinstance(s, Symbolic) for k, v in s.blocks.items()}
    fresh = result.blocks["new"].abs().sum(0) if "new" in result.blocks else 0.0
    for _ in range(points):
        symbols = {
            k: torch.rand(n, generator=generator, dtype=torch.float64) * 2 - 1
            for k, n in names.items()
        }
        if rng.random() < 0.5:
            symbols = {k: s.sign() for k, s in symbols.items()}
        exact = _reference(spec, [_double_at(v, symbols) for v in values], drawn.attrs)
        line = _at(_doubled(result), symbols)
        _require(drawn, "symbolic", excess(exact, Interval(line - fresh, line + fresh), allowed))


def _doubled(value: Any) -> Any:
    if isinstance(value, Symbolic):
        return value.map(Tensor.double, Tensor.double)
    return value.double() if value.is_floating_point() else value


def _double_at(value: Any, symbols: Mapping[str, Tensor]) -> Tensor:
    return _at(_doubled(value), symbols)


_CHECKS = (check_interval_rule, check_symbolic_rule, check_backward_rule, check_samples)
