"""Linear lower bounds that carry the rounding of their own coefficients and offset.

A row claims `row >= coeff·(v − c) + offset − error` for every real point of the region, with
v the exact value of the node that it is a form of and c the centre of that node's interval,
the same float wherever the interval is read. Rounding of a coefficient by at most E costs
`|E|·|v − c| <= |E|·r`, a number per row and sample, instead of making the coefficients
intervals. Measured from the centre, what is lost is of the size of the region and not of the
values, and the offset is the row's value at the centre.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boundgraph.domains.balls import dual, norm_above
from boundgraph.domains.linear_form import LinearForm, Lines, dot, sum_over
from boundgraph.domains.rounding import Outward, Precision, below, grown


class SoundForm(LinearForm):
    """A linear form around a centre, and a bound on what rounding took from it.

    Args:
        coeff: as in `LinearForm`.
        offset: `[rows, batch]`, the bound at the centre; None means zero.
        error: `[rows, batch]`, not negative; None means zero.
        precision: constants of the dtype.
    """

    __slots__ = ("error", "precision")

    def __init__(
        self, coeff: Tensor, offset: Tensor | None, error: Tensor | None, precision: Precision
    ) -> None:
        super().__init__(coeff, offset)
        self.error, self.precision = error, precision

    def charged(self, form: LinearForm, *terms: Tensor) -> SoundForm:
        """`form`, which follows from this one up to `terms` and one rounding of the offset."""
        p, total = self.precision, self.error
        for term in terms:
            total = term if total is None else total + term
        if form.offset is not None and form.offset is not self.offset:
            rounded = form.offset.abs() * (2.0 * p.unit)
            total = rounded if total is None else total + rounded
        return SoundForm(form.coeff, form.offset, None if total is None else grown(total, p), p)

    def through_outward(
        self, lines: Lines, box: Outward, result: Outward, shape: Sample
    ) -> SoundForm:
        """`through`, for lines that hold exactly, from the result's centre to the operand's.

        A line t = λc + μ − c' at the operand's centre lies within `middle ± gap`, so that
        A⁺t_lower + A⁻t_upper >= A·middle − |A|·gap, with all roundings in the gap.

        Args:
            lines: valid over `box` as real functions.
            box, result: intervals of operand and result.
            shape: of the operand's samples.
        """
        p = self.precision
        slope = torch.where(self.coeff > 0, lines.lower_slope, lines.upper_slope)
        middle, gap = _band(lines, box, result, p)
        steepest = torch.maximum(lines.lower_slope.abs(), lines.upper_slope.abs())
        gap = (
            gap + middle.abs() * p.gamma(shape.elements + 4) + box.radius * steepest * 4.0 * p.unit
        )
        size = self.coeff.abs()
        form = LinearForm(self.coeff * slope, self.shifted(shape.product(self.coeff, middle)))
        lost = shape.above(size, grown(gap, p), p)
        return self.charged(form, lost, shape.underflow(box.radius, 4, p))

    def least_over(self, box: Outward, shape: Sample) -> Tensor:
        """A number below the least value over a box, `[rows, batch]`."""
        p = self.precision
        least = -shape.above(self.coeff.abs(), box.radius, p)
        error: Tensor | float = 0.0 if self.error is None else grown(self.error, p)
        if self.offset is not None:
            least = least + self.offset
        return below(least, error, p)

    def least_over_ball(
        self,
        box: Outward,
        middle: Tensor,
        reach: Tensor,
        norm: float,
        shape: Sample,
        *,
        samples: bool,
    ) -> Tensor:
        """A number below the least value over a ball inside a box, `[rows, batch]`.

        A(x − c) >= A(m − c) − ‖A‖_q·reach over `‖x − m‖_p <= reach`, with c the box's centre.

        Args:
            middle: m, `[batch, ...]`.
            reach: `[batch]`.
            norm: p, 1 or 2.
            samples: they are kept apart.
        """
        p, rank = self.precision, len(shape.dims) + samples
        flat = self.coeff.flatten(2) if rank > 1 else self.coeff.unsqueeze(-1)
        spread = norm_above(flat, dual(norm), -1, shape.elements, p) * reach
        if not samples:
            # Samples that are not kept apart: the region is the product of their balls.
            spread = spread.sum(-1) * (1.0 + 2.0 * p.gamma(shape.elements + 4))
        shift = middle - box.center
        lost = shift.abs() * p.gamma(shape.elements + 8) + 16.0 * p.tiny
        error = grown(spread, p) + shape.above(self.coeff.abs(), lost, p)
        error = error if self.error is None else error + self.error
        least = shape.product(self.coeff, shift)
        if self.offset is not None:
            # One sum more than `below` counts.
            error = error + self.offset.abs() * (4.0 * p.unit)
            least = least + self.offset
        return below(least, grown(error, p), p)


class Sample:
    """The shape of one sample of a value, and sums over it.

    Args:
        dims: dimensions of a coefficient that belong to a sample.
        elements: how many numbers it has.
        shared: the coefficients are those of all samples (their batch dimension is 1).
    """

    __slots__ = ("dims", "elements", "shared")

    def __init__(self, dims: tuple[int, ...], elements: int, shared: bool = False) -> None:
        self.dims, self.elements, self.shared = dims, elements, shared

    def product(self, coeff: Tensor, value: Tensor) -> Tensor:
        """Coefficients times a value, summed over a sample: `[rows, batch]`."""
        if self.shared and self.dims == tuple(range(2, 2 + len(self.dims))) and self.dims:
            rows, columns = coeff.flatten(2).squeeze(1), value.flatten(1)
            return torch.matmul(rows, columns.transpose(0, 1))
        return dot(coeff, value, self.dims)

    def above(self, coeff: Tensor, value: Tensor, p: Precision) -> Tensor:
        """Above `product` of what is not negative."""
        return self._up(self.product(coeff, value), p)

    def underflow(self, radius: Tensor, terms: int, p: Precision) -> Tensor:
        """What underflow of `terms` products in each coefficient, and in the sums over a
        sample, may cost, `[1, batch]`."""
        reach = self._up(sum_over(radius.unsqueeze(0), self.dims), p)
        return (reach + 2.0 * self.elements) * (16.0 * (terms + 4) * p.tiny)

    def _up(self, total: Tensor, p: Precision) -> Tensor:
        slack = 16.0 * (self.elements + 4) * p.tiny
        return grown(total * (1.0 + 2.0 * p.gamma(self.elements + 4)) + slack, p)


def _band(lines: Lines, box: Outward, result: Outward, p: Precision) -> tuple[Tensor, Tensor]:
    """`middle` and `gap` around the lines' values at the centre, less the result's centre."""
    center, own = box.center, result.center
    low, high = lines.lower_slope * center, lines.upper_slope * center
    near_low, near_high = low - own, high - own
    down, up = near_low + lines.lower_offset, near_high + lines.upper_offset
    middle = down * 0.5 + up * 0.5
    gap = torch.maximum(up - middle, middle - down).clamp(min=0.0)
    lost = torch.maximum(
        low.abs() + near_low.abs() + down.abs(), high.abs() + near_high.abs() + up.abs()
    )
    return middle, gap + (lost * (2.0 * p.unit) + 16.0 * p.tiny)


def sum_sound(forms: tuple[SoundForm, ...], box: Outward, shape: Sample) -> SoundForm:
    """The form of a value that is read several times; each addition rounds."""
    p, first = forms[0].precision, forms[0]
    coeff, offset, size = first.coeff, first.offset, first.coeff.abs()
    for form in forms[1:]:
        coeff, size = coeff + form.coeff, size + form.coeff.abs()
        offset = form.shifted(offset)
    count = len(forms) + 2
    terms: list[Tensor] = [form.error for form in forms[1:] if form.error is not None]
    offsets = [
        form.offset.abs() * (2.0 * count * p.unit) for form in forms if form.offset is not None
    ]
    lost = shape.above(size, box.radius * p.gamma(count), p)
    return first.charged(LinearForm(coeff, offset), lost, *terms, *offsets)


def signed(form: SoundForm) -> SoundForm:
    """The rows and then the negated rows: exact."""
    offset = None if form.offset is None else torch.cat([form.offset, -form.offset])
    error = None if form.error is None else torch.cat([form.error, form.error])
    return SoundForm(torch.cat([form.coeff, -form.coeff]), offset, error, form.precision)


def total_of(parts: list[Tensor], p: Precision) -> Tensor:
    """Below the sum of lower bounds."""
    total = parts[0]
    for part in parts[1:]:
        total = below(total + part, 0.0, p)
    return total
