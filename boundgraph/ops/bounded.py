"""Rules by the op names of bounded programs: `relu`, `interval.relu`, `symbolic.relu`.

Besides the rules of the registry there are a few ops that exist only on bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from boundgraph.domains.balls import least_over_ball
from boundgraph.domains.interval import Interval, meet
from boundgraph.domains.interval_linear import INTERVAL_LINEAR
from boundgraph.domains.interval_steps import layer_interval, relu_interval, sum_interval
from boundgraph.domains.linear_form import LinearForm, identity_rows, sum_forms
from boundgraph.domains.relu_rows import relu_form
from boundgraph.domains.relu_steps import step_form
from boundgraph.domains.rounding import PRECISIONS, Outward
from boundgraph.domains.symbolic import Symbolic, diagonal
from boundgraph.domains.windowed import Windowed
from boundgraph.errors import InternalError
from boundgraph.ops import _ball, _sound, _sound_backward, _sound_symbolic, _spec, _windowed
from boundgraph.ops._spec import Rule

INTERVAL, SYMBOLIC, BACKWARD = "interval.", "symbolic.", "backward."


def _symbolic_input(
    x: Interval,
    *,
    block: str,
    batch_dim: int | None,
    features: tuple[int, ...],
    windows: Any = (),
) -> Symbolic:
    """An interval as a zonotope with one symbol per element."""
    return Symbolic(x.center, {block: _own_symbols(x.radius, batch_dim, features, windows)})


def _own_symbols(
    sizes: Tensor, batch_dim: int | None, features: tuple[int, ...], windows: Any
) -> Any:
    if windows:
        return Windowed.diagonal(sizes, features)
    return diagonal(sizes, batch_dim, features)


def _ball_input(
    box: Interval,
    center: Tensor,
    reach: Tensor,
    *,
    block: str,
    batch_dim: int | None,
    features: tuple[int, ...],
    windows: Any = (),
) -> Symbolic:
    """A p-ball as symbols of each sample in the unit ball, scaled by its radius."""
    rank = len(features) + (batch_dim is not None)
    wide = torch.ones_like(center) * reach.reshape((-1, *(1,) * (rank - 1)))
    return Symbolic(center, {block: _own_symbols(wide, batch_dim, features, windows)})


def _seed(like: Interval, *, shape: tuple[int, ...], batch_dim: int | None) -> LinearForm:
    return LinearForm(identity_rows(like.any_part, shape, batch_dim))


def _sign(form: LinearForm) -> LinearForm:
    """The rows and then the negated rows, whose lower bounds are negated upper bounds."""
    offset = None if form.offset is None else torch.cat([form.offset, -form.offset])
    return LinearForm(torch.cat([form.coeff, -form.coeff]), offset)


def _tighten(old: Interval, back: Interval, *, kinks: tuple[float, ...]) -> Interval:
    """The intersection where an end matters: where a kink of what reads the value lies inside.

    Elsewhere the readers are linear over the old interval already, and backward bounds of
    those elements need not be computed at all (`runtime/rows.py`).
    """
    open_ = crosses(old, kinks)
    both = meet(old, back)
    return Interval(
        torch.where(open_, both.lower, old.lower), torch.where(open_, both.upper, old.upper)
    )


def crosses(x: Interval, kinks: tuple[float, ...]) -> Tensor:
    """Whether a kink lies strictly inside the interval; false where an end is NaN."""
    inside = [(x.lower < kink) & (x.upper > kink) for kink in kinks]
    return torch.stack(inside).any(0) if len(inside) > 1 else inside[0]


def least(
    ends: Sequence[Any],
    dims: tuple[tuple[int, ...], ...],
    norms: tuple[float, ...],
    *,
    samples: bool,
) -> Tensor:
    """Sum of the least values of forms over their intervals, `[rows, batch]`.

    Args:
        ends: form, interval, form, interval, …; a ball's centre and radius follow its interval.
        dims: for each form the dimensions of a coefficient that belong to one sample.
        norms: of each end, 0 for a box; all boxes where empty.
        samples: values have a batch dimension.
    """
    total, rest = None, iter(ends)
    for over, norm in zip(dims, norms or (0.0,) * len(dims), strict=True):
        form, box = next(rest), next(rest)
        part = form.lower_over(box, over)
        if norm:
            rank = len(over) + samples
            lowest = least_over_ball(
                form.coeff, next(rest), next(rest), norm, rank=rank, samples=samples
            )
            part = torch.maximum(part, form.shifted(lowest))
        total = part if total is None else total + part
    assert total is not None
    return total


def elements(rows: Tensor, batch_dim: int | None, shape: tuple[int, ...]) -> Tensor:
    """Rows `[rows, batch]` as the elements of a value of that shape that they bound."""
    if batch_dim is None:
        return rows.reshape(shape)
    features = tuple(size for dim, size in enumerate(shape) if dim != batch_dim)
    if not features:
        return rows.select(0, 0)
    return rows.movedim(0, 1).unflatten(1, features).movedim(0, batch_dim)


def _assemble(
    *ends: Any,
    signed: bool,
    batch_dim: int | None,
    shape: tuple[int, ...],
    dims: tuple[tuple[int, ...], ...],
    norms: tuple[float, ...] = (),
) -> Interval:
    """Least values of forms; rows become elements again.

    An end whose norm is not 0 is a ball: its centre and radius follow its interval, and the
    better of the two least values holds, as the region lies in both. The first half of signed
    rows bounds the elements from below, the negated second half from above.
    """
    total = least(ends, dims, norms, samples=batch_dim is not None)
    return _elements(total, signed, batch_dim, shape)


def _assemble_sound(
    *ends: Any,
    signed: bool,
    batch_dim: int | None,
    shape: tuple[int, ...],
    dims: tuple[tuple[int, ...], ...],
    elements: tuple[int, ...],
    shared: tuple[bool, ...],
    precision: str,
    norms: tuple[float, ...] = (),
) -> Interval:
    """`_assemble`, rounded outward."""
    samples = batch_dim is not None
    total = _sound_backward.least_rows(ends, dims, norms, elements, shared, precision, samples)
    found = _elements(total, signed, batch_dim, shape)
    return Outward(found.lower, found.upper, PRECISIONS[precision])


def _elements(
    total: Tensor, signed: bool, batch_dim: int | None, shape: tuple[int, ...]
) -> Interval:
    """Least values of rows as ends of the elements that the rows belong to."""
    count = math.prod(size for dim, size in enumerate(shape) if dim != batch_dim)
    lower = elements(total.narrow(0, 0, count), batch_dim, shape)
    if not signed:
        return Interval(lower, torch.full_like(lower, torch.inf))
    return Interval(lower, -elements(total.narrow(0, count, count), batch_dim, shape))


def _linear_pair(x: Interval, weight: torch.Tensor, *bias: torch.Tensor) -> Interval:
    """`interval.linear` as one batched product of centre and radius with W and |W|."""
    parts = torch.stack((x.center, x.radius))
    products = torch.bmm(parts, torch.stack((weight, weight.abs())).transpose(1, 2))
    center, radius = products.select(0, 0), products.select(0, 1)
    return Interval.from_center_radius(center + bias[0] if bias else center, radius)


def _linear_relu(x: Interval, weight: torch.Tensor, *bias: torch.Tensor) -> Interval:
    """`interval.linear` and `interval.relu` as one call with a kernel of its own."""
    operands = (x.center, x.radius, weight, bias[0] if bias else None, True)
    found: Any
    if isinstance(x.center, fx.Proxy):
        found = x.center.tracer.create_proxy("call_function", INTERVAL_LINEAR, operands, {})
    else:
        found = INTERVAL_LINEAR(*operands)
    return Interval(found[0], found[1])


def _linear_margin_lower(
    x: Interval,
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.Tensor,
    *,
    classes: int,
) -> Interval:
    """Lower ends of `interval.linear_margin` as one product; upper ends are infinite.

    D·c − |D|·r with D = W_y − W_j is the least value of (W_y − W_j)·v over c ± r. Rows of
    all C² pairs serve the whole batch and the label picks among the products; the row of a
    label with itself is exactly 0.
    """
    rows = weight.unsqueeze(1) - weight.unsqueeze(0)
    # The offsets are one more column: as an offset of the product, or added to the margins,
    # their gradient would be reductions of its own.
    offsets = (bias.unsqueeze(1) - bias).unsqueeze(2)
    signed = torch.cat((rows, -rows.abs(), offsets), 2).flatten(0, 1)
    ones = torch.ones_like(x.center.narrow(1, 0, 1))
    pairs = F.linear(torch.cat((x.center, x.radius, ones), 1), signed)
    own = (labels.unsqueeze(1) == torch.arange(classes, device=labels.device)).unsqueeze(2)
    lower = torch.where(own, pairs.unflatten(1, (classes, classes)), 0.0).sum(1)
    return Interval(lower, torch.full_like(lower, torch.inf))


def _defined(x: Interval, *, function: str, **attrs: Any) -> Interval:
    """NaN where a function with a domain may be undefined on an interval, 0 elsewhere."""
    spec = _spec.get(function)
    assert spec is not None and spec.interval is not None
    found = spec.interval(x, **attrs)
    flag = torch.where((found.lower == found.lower) & (found.upper == found.upper), 0.0, torch.nan)
    flag = flag.to(found.lower.dtype)
    return Interval(flag, flag)


def _kept(
    out: Interval,
    *flags: Interval,
    over: tuple[tuple[int, ...], ...],
    apart: tuple[bool, ...],
    spread: tuple[int, ...] | None,
) -> Interval:
    """An interval, or NaN where one of the flags of its sample is.

    Args:
        over: dimensions of each flag that are not the samples'.
        apart: whether a flag keeps samples apart.
        spread: a number for each sample in the shape that broadcasts to the interval.
    """
    lower, upper = out.lower, out.upper
    for flag, dims, own in zip(flags, over, apart, strict=True):
        found = flag.lower.sum(dims) if dims else flag.lower
        found = found.reshape(spread or ()) if own else found
        lower, upper = lower + found, upper + found
    return Interval(lower, upper)


BOUND_ONLY: dict[str, Rule] = {
    "interval.meet": meet,
    "interval.defined": _defined,
    "interval.kept": _kept,
    "interval.linear_pair": _linear_pair,
    "interval.linear_relu": _linear_relu,
    "interval.linear_margin_lower": _linear_margin_lower,
    "interval.layer_step": layer_interval,
    "interval.relu_step": relu_interval,
    "interval.add_step": sum_interval,
    # A plain value that carries rounding from here on.
    "interval.point": Interval.point,
    "interval.tighten": _tighten,
    "symbolic.concretize": lambda x: x.concretize(),
    "symbolic.fresh": _symbolic_input,
    "symbolic.ball": _ball_input,
    "symbolic.dense": _windowed.dense,
    "backward.seed": _seed,
    "backward.merge": sum_forms,
    "backward.relu_rows": relu_form,
    "backward.relu_step": step_form,
    "backward.sign": _sign,
    "backward.assemble": _assemble,
    "backward.sound.assemble": _assemble_sound,
    **_sound_backward.BOUND_ONLY,
    **_sound_symbolic.BOUND_ONLY,
}


_DERIVED = (
    (INTERVAL, _sound.interval_rule),
    (BACKWARD, _sound_backward.backward_rule),
    (SYMBOLIC, _sound_symbolic.symbolic_rule),
)


def rule(op: str) -> Rule:
    """The function that a program op runs.

    Raises:
        InternalError: no such op, or the op lacks that rule.
    """
    if op in BOUND_ONLY:
        return BOUND_ONLY[op]
    if op.startswith(SYMBOLIC + _windowed.WINDOWS):
        on_windows: Rule | None = _windowed.RULES.get(op.removeprefix(SYMBOLIC + _windowed.WINDOWS))
        if on_windows is None:
            raise InternalError(f"no rule for op {op!r}")
        return on_windows
    if op.startswith(INTERVAL + _sound.SOUND + _ball.BALL):
        spec = _spec.get(op.removeprefix(INTERVAL + _sound.SOUND + _ball.BALL))
        over_ball = None if spec is None else _ball.sound_ball_rule(spec)
        if over_ball is None:
            raise InternalError(f"no rule for op {op!r}")
        return over_ball
    for prefix, derive in _DERIVED:
        if op.startswith(prefix + _sound.SOUND):
            spec = _spec.get(op.removeprefix(prefix + _sound.SOUND))
            sound = None if spec is None else derive(spec)
            if sound is None:
                raise InternalError(f"no rule for op {op!r}")
            return sound
    if op.startswith(INTERVAL + _ball.BALL):
        spec = _spec.get(op.removeprefix(INTERVAL + _ball.BALL))
        over_ball = None if spec is None else _ball.ball_rule(spec)
        if over_ball is None:
            raise InternalError(f"no rule for op {op!r}")
        return over_ball
    name, attribute = op, "concrete"
    prefixes = ((INTERVAL, "interval"), (SYMBOLIC, "symbolic"), (BACKWARD, "backward"))
    for prefix, field in prefixes:
        if op.startswith(prefix):
            name, attribute = op.removeprefix(prefix), field
    spec = _spec.get(name)
    found: Rule | None = getattr(spec, attribute) if spec is not None else None
    if found is None:
        raise InternalError(f"no rule for op {op!r}")
    return found


def known(op: str) -> bool:
    """Whether a program may contain this op."""
    try:
        rule(op)
    except InternalError:
        return False
    return True
