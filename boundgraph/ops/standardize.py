"""What normalisation layers do to a sample: centre a group of elements, and scale it.

Layer, group, instance and RMS normalisation are `center` (affine), then `scale_to_unit`
(whose result is bounded whatever its operand), then weight and bias.
"""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm, Lines
from boundgraph.domains.rounding import Outward, Precision, above, below, grown
from boundgraph.ops._kinds import affine
from boundgraph.ops._samples import random_shape
from boundgraph.ops._spec import Kind, OpCase, OpSpec, Rounding, register

Dims = tuple[int, ...]


def _later(dims: Dims) -> Dims:
    return tuple(dim + 1 for dim in dims)


def _center(x: Tensor, *, dims: Dims, count: int) -> Tensor:
    return x - x.mean(dims, keepdim=True)


def _center_magnitude(x: Tensor, *, dims: Dims, count: int) -> Tensor:
    """|I − 1/n| has 1 − 1/n on its diagonal and 1/n elsewhere."""
    return x * (1.0 - 2.0 / count) + x.mean(dims, keepdim=True)


def other_dims(batch_dims: Any, *_: Any, dims: Dims, **__: Any) -> int | None:
    return None if batch_dims[0] in dims else batch_dims[0]


def _sample(rng: random.Random) -> OpCase:
    shape = random_shape(rng)
    first = rng.randrange(len(shape))
    dims = tuple(range(first, len(shape)))
    return OpCase((shape,), {"dims": dims, "count": math.prod(shape[first:])})


affine(
    "center",
    _center,
    magnitude=_center_magnitude,
    lifted=lambda g, *, dims, count: _center(g, dims=_later(dims), count=count),
    adjoint=lambda coeff, *, shapes, target, dims, count: _center(
        coeff, dims=_later(dims), count=count
    ),
    batch=other_dims,
    rounding=Rounding(ulps=1, terms=lambda x, *, dims, count: count + 3),
    sample=_sample,
    summary="x − mean over dimensions",
)


def _scale(
    x: Tensor, *, dims: Dims, count: int, eps: float, floor: float, centered: bool
) -> Tensor:
    spread = ((x * x).mean(dims, keepdim=True) + eps).sqrt()
    return x / (spread.clamp(min=floor) if floor else spread)


def _limit(count: int, centered: bool) -> float:
    """|x_i| / rms(x) is at most √n, and √(n − 1) where the elements sum to 0."""
    return math.sqrt(count - 1 if centered and count > 1 else count)


def _sizes(x: Interval) -> tuple[Tensor, Tensor]:
    """Least and largest absolute value of each element."""
    least = torch.maximum(x.lower, -x.upper).clamp(min=0.0)
    return least, torch.maximum(x.lower.abs(), x.upper.abs())


def _at(
    end: Tensor,
    least: Tensor,
    mean_least: Tensor,
    count: int,
    unit: Tensor,
    *,
    eps: float,
    floor: float,
    centered: bool,
) -> Tensor:
    """The largest |y_i| for x_i = end: all other elements as small as they can be.

    All are in units of `unit`, so that no square overflows. Where the elements sum to 0,
    Cauchy–Schwarz also gives x_i² ≤ (n − 1)/n · Σ x_j².
    """
    square = end * end
    power = mean_least + (end.abs() - least) * (end.abs() + least) / count
    if centered and count > 1:
        power = torch.maximum(power, square / (count - 1))
    else:
        power = torch.maximum(power, square / count)
    spread = (power + eps / unit / unit).sqrt()
    spread = torch.maximum(spread, floor / unit) if floor else spread
    # 0/0 only where eps and floor are 0: then the quotient is undefined, and NaN.
    return end / spread


def _scale_interval(
    x: Interval, *, dims: Dims, count: int, eps: float, floor: float, centered: bool
) -> Interval:
    """y_i = x_i / rms(x) rises in x_i, and |y_i| falls in every other |x_j|.

    So each end is taken at an end of x_i, with the others as near 0 as they can be where
    that widens (a positive upper end, a negative lower one), and as far as they can be
    where it does not.
    """
    least, most = _sizes(x)
    unit = most.amax(dims, keepdim=True).clamp(min=1.0)
    lower, upper, least, most = x.lower / unit, x.upper / unit, least / unit, most / unit
    mean_least = (least * least).mean(dims, keepdim=True)
    far = ((most * most).mean(dims, keepdim=True) + eps / unit / unit).sqrt()
    far = torch.maximum(far, floor / unit) if floor else far

    def at(end: Tensor) -> Tensor:
        return _at(end, least, mean_least, count, unit, eps=eps, floor=floor, centered=centered)

    return Interval(
        torch.where(lower < 0, at(lower), lower / far),
        torch.where(upper > 0, at(upper), upper / far),
    )


def _scale_sound(
    x: Outward,
    *,
    dims: Dims,
    count: int,
    eps: float,
    floor: float,
    centered: bool,
    terms: int,
    precision: Precision,
) -> Outward:
    """`_scale_interval` with its rounding.

    In units of `unit` (any number, because it cancels) every square is at most 1 and all sums are
    of what is not negative, so a computed mean of squares is off by less than γ(terms) of itself
    and terms·η. The product (|end| − least)(|end| + least) may cancel, but errs by 8u·end², and
    the mean of squares is at least end²/n. What end/unit loses to underflow is added to it.
    A result never leaves ±√n (±√(n − 1)), whatever x is.
    """
    p = precision
    least, most = _sizes(x)
    unit = most.amax(dims, keepdim=True).clamp(min=1.0)
    share, slack = 4.0 * p.gamma(terms + 16), 64.0 * (terms + 8) * p.tiny
    lower, upper, small, large = x.lower / unit, x.upper / unit, least / unit, most / unit
    mean_least = (small * small).mean(dims, keepdim=True)
    added, bottom = eps / unit / unit, floor / unit

    def spread(power: Tensor, sign: float) -> Tensor:
        outward = (power + added) * (1.0 + sign * share) + sign * slack
        root = outward.clamp(min=0.0).sqrt()
        if not floor:
            return root
        moved = bottom * (1.0 + sign * 8.0 * p.unit) + sign * 8.0 * p.tiny
        return torch.maximum(root, moved.clamp(min=0.0))

    def largest(end: Tensor) -> Tensor:
        size = end.abs()
        power = mean_least + (size - small) * (size + small) / count
        part = count - 1 if centered and count > 1 else count
        power = torch.maximum(power, size * size / part)
        return grown(size, p) / spread(power, -1.0)

    far = spread((large * large).mean(dims, keepdim=True), 1.0)
    # Signs before the division, which may underflow to 0.
    low = torch.where(x.lower < 0, -largest(lower), lower / far)
    high = torch.where(x.upper > 0, largest(upper), upper / far)
    low = below(low, low.abs() * (16.0 * p.unit), p)
    high = above(high, high.abs() * (16.0 * p.unit), p)
    # Overflow leaves no end, and there the limit holds.
    limit = _limit(count, centered) * (1.0 + 8.0 * p.unit)
    low = torch.where(low >= -limit, low, -limit)
    high = torch.where(high <= limit, high, limit)
    if not eps and not floor:
        # 0/0 is no number: nothing is bounded where x can be 0.
        zero = least.amax(dims, keepdim=True) == 0
        low, high = torch.where(zero, -torch.inf, low), torch.where(zero, torch.inf, high)
    return Outward(low, high, p)


def _scale_magnitude(
    x: Tensor, *, dims: Dims, count: int, eps: float, floor: float, **_: Any
) -> Tensor:
    """An error of x grows by at most the largest factor there is."""
    factor = max(math.sqrt(eps), floor)
    limit = math.sqrt(count)
    return x / factor + limit if factor else torch.full_like(x, limit)


def _scale_lines(
    x: Interval, *, dims: Dims, count: int, eps: float, floor: float, centered: bool
) -> Lines:
    """Between x·s for the least and the largest factor s, or constant where that is tighter.

    max(s₁x, s₂x) is convex, so its chord lies above it; the minimum is concave.
    """
    y = _scale_interval(x, dims=dims, count=count, eps=eps, floor=floor, centered=centered)
    least, most = _sizes(x)
    unit = most.amax(dims, keepdim=True).clamp(min=1.0)
    ends = []
    for size in (most, least):
        part = size / unit
        spread = ((part * part).mean(dims, keepdim=True) + eps / unit / unit).sqrt()
        spread = torch.maximum(spread, floor / unit) if floor else spread
        ends.append(1.0 / (spread * unit))
    small, large = ends
    low, high = x.lower, x.upper
    above = (low * torch.where(low < 0, small, large), high * torch.where(high > 0, large, small))
    below = (low * torch.where(low < 0, large, small), high * torch.where(high > 0, small, large))
    width = high - low
    slopes, offsets = [], []
    for (left, right), sign, bound in ((below, -1.0, y.lower), (above, 1.0, y.upper)):
        slope = (right - left) / torch.where(width > 0, width, 1.0)
        slope = torch.minimum(torch.maximum(slope, small), large)
        touch = sign * torch.maximum(sign * (left - slope * low), sign * (right - slope * high))
        worse = sign * (left + right) * 0.5 >= sign * bound
        constant = worse | ~torch.isfinite(touch) | ~torch.isfinite(slope)
        slopes.append(torch.where(constant, 0.0, slope))
        offsets.append(torch.where(constant, bound, touch))
    return Lines(slopes[0], offsets[0], slopes[1], offsets[1])


def _scale_backward(
    form: LinearForm,
    pre: Interval,
    *,
    operand: int,
    carry: bool,
    shapes: Any,
    target: Any,
    sample_dims: Dims,
    **attrs: Any,
) -> LinearForm:
    return form.through(_scale_lines(pre, **attrs), sample_dims)


def _sample_scale(rng: random.Random) -> OpCase:
    case = _sample(rng)
    attrs = {"eps": rng.choice((1e-5, 1e-2)), "floor": rng.choice((0.0, 0.1)), "centered": False}
    return OpCase(case.shapes, case.attrs | attrs)


register(
    OpSpec(
        "scale_to_unit",
        Kind.COMPOSITE,
        _scale,
        interval=_scale_interval,
        magnitude=_scale_magnitude,
        boundable=(0,),
        batch=other_dims,
        # A sum of squares; the others' squares are at least 0 where one is taken out.
        rounding=Rounding(ulps=8, terms=lambda x, *, count, **_: count + 8, relative=True),
        backward=_scale_backward,
        lines=_scale_lines,
        sound=_scale_sound,
        sample=_sample_scale,
        summary="x / root mean square over dimensions",
    )
)


def _norm(x: Tensor, *, p: float, dims: Dims, count: int, keepdim: bool) -> Tensor:
    return torch.linalg.vector_norm(x, p, dims, keepdim)


def _norm_interval(x: Interval, *, p: float, **attrs: Any) -> Interval:
    """A norm rises in every |x_i|."""
    least, most = _sizes(x)
    return Interval(_norm(least, p=p, **attrs), _norm(most, p=p, **attrs))


def _norm_sound(
    x: Outward,
    *,
    p: float,
    dims: Dims,
    count: int,
    keepdim: bool,
    terms: int,
    precision: Precision,
) -> Outward:
    """‖x‖_p falls with p, so that other norms lie between those of 1, 2 and ∞: powers have no
    declared rounding."""
    least, most = _sizes(x)
    lesser = p if p in (1.0, 2.0) else 2.0 if p < 2.0 else math.inf
    greater = p if p in (1.0, 2.0, math.inf) else 1.0 if p < 2.0 else 2.0
    low = _norm_off(least, lesser, dims, terms, precision, -1.0)
    high = _norm_off(most, greater, dims, terms, precision, 1.0)
    if not keepdim:
        for dim in sorted(dims, reverse=True):
            low, high = low.squeeze(dim), high.squeeze(dim)
    return Outward(low.clamp(min=0.0), high, precision)


def _norm_off(
    size: Tensor, norm: float, dims: Dims, terms: int, p: Precision, sign: float
) -> Tensor:
    """A norm of what is not negative, rounded down (sign −1) or up.

    Divided by the largest element, squares that underflow do not matter beside its 1.
    """
    found = peak = size.amax(dims, keepdim=True)
    if norm != math.inf:
        scaled = size / torch.where(peak > 0, peak, 1.0)
        total = (scaled * scaled if norm == 2.0 else scaled).sum(dims, keepdim=True)
        total = total * (1.0 + sign * 4.0 * p.gamma(terms + 16))
        total = (total + sign * 64.0 * (terms + 8) * p.tiny).clamp(min=0.0)
        found = (total.sqrt() if norm == 2.0 else total) * peak
    share = found * (16.0 * p.unit)
    return below(found, share, p) if sign < 0 else above(found, share, p)


def _norm_batch(batch_dims: Any, *_: Any, dims: Dims, keepdim: bool, **__: Any) -> int | None:
    batch = batch_dims[0]
    if batch is None or batch in dims:
        return None
    return batch if keepdim else batch - sum(dim < batch for dim in dims)


def _norm_backward(
    form: LinearForm,
    pre: Interval,
    *,
    operand: int,
    carry: bool,
    shapes: Any,
    target: Any,
    sample_dims: Dims,
    p: float,
    dims: Dims,
    keepdim: bool,
    count: int,
) -> LinearForm:
    """‖x‖₂ ≥ g·x for every unit vector g (here that of the centre); else the range of the norm."""
    range_ = _norm_interval(pre, p=p, dims=dims, keepdim=keepdim, count=count)
    positive, negative = form.coeff.clamp(min=0.0), form.coeff.clamp(max=0.0)
    wide = positive
    if not keepdim:
        for dim in sorted(dims):
            wide = wide.unsqueeze(dim + 1)
    center = pre.center / pre.center.abs().amax(dims, keepdim=True).clamp(min=1e-30)
    length = _norm(center, p=2.0, dims=dims, keepdim=True, count=count)
    unit = center / length.clamp(min=1e-30)
    coeff = wide * (unit if p == 2.0 else torch.zeros_like(unit))
    if not carry:
        return LinearForm(coeff)
    term = negative * range_.upper
    term = term if p == 2.0 else term + positive * range_.lower
    return LinearForm(coeff, form.shifted(term.sum(sample_dims) if sample_dims else term))


def _sample_norm(rng: random.Random) -> OpCase:
    case = _sample(rng)
    attrs = {"p": rng.choice((1.0, 2.0, 3.0, math.inf)), "keepdim": rng.random() < 0.5}
    return OpCase(case.shapes, case.attrs | attrs)


register(
    OpSpec(
        "vector_norm",
        Kind.COMPOSITE,
        _norm,
        interval=_norm_interval,
        magnitude=_norm,
        boundable=(0,),
        batch=_norm_batch,
        rounding=Rounding(ulps=16, terms=lambda x, *, count, **_: count + 4, relative=True),
        backward=_norm_backward,
        sound=_norm_sound,
        sample=_sample_norm,
        summary="p-norm over dimensions",
    )
)
