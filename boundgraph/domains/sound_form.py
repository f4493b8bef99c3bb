"""Linear lower bounds that carry the rounding of their own coefficients and offset.

A row claims `value >= coeff·v + offset − error` for every real point of the region, with v
the exact value of the node it is a form of. Rounding of a coefficient by at most E costs
`|E|·|v|`, which an interval of v bounds, so it moves into `error`, a number per row and
sample, instead of making the coefficients intervals.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boundgraph.domains.linear_form import LinearForm, Lines, sum_over
from boundgraph.domains.rounding import Outward, Precision, below, grown


class SoundForm(LinearForm):
    """A linear form and a bound on what rounding took from it.

    Args:
        coeff, offset: as in `LinearForm`.
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
            rounded = form.offset.abs() * (4.0 * p.unit)
            total = rounded if total is None else total + rounded
        return SoundForm(form.coeff, form.offset, None if total is None else grown(total, p), p)

    def through_outward(
        self, lines: Lines, box: Outward, dims: tuple[int, ...], elements: int
    ) -> SoundForm:
        """`through`, for lines that hold exactly: one product per coefficient rounds.

        Args:
            lines: valid over `box` as real functions.
            box: interval of the operand.
            dims: the sample's dimensions.
            elements: number of elements of a sample.
        """
        p = self.precision
        positive, negative = self.coeff.clamp(min=0.0), self.coeff.clamp(max=0.0)
        coeff = positive * lines.lower_slope + negative * lines.upper_slope
        term = positive * lines.lower_offset + negative * lines.upper_offset
        size = box.magnitude()
        lost = coeff.abs() * (size * (4.0 * p.unit)) + term.abs() * p.gamma(elements + 4)
        form = LinearForm(coeff, self.shifted(sum_over(term, dims)))
        return self.charged(
            form, upward_sum(lost, dims, elements, p), underflow(size, dims, 4, elements, p)
        )

    def least_over(self, box: Outward, dims: tuple[int, ...], elements: int) -> Tensor:
        """A number below the least value over a box, `[rows, batch]`."""
        p = self.precision
        center, radius = box.center, box.radius
        size = self.coeff.abs()
        least = sum_over(self.coeff * center - size * radius, dims)
        error = upward_sum(size * (center.abs() + radius), dims, elements, p)
        error = error * p.gamma(elements + 6) + 16.0 * (elements + 4) * p.tiny
        if self.offset is not None:
            # The sum below rounds once; `below` counts that rounding only.
            least, error = least + self.offset, error + self.offset.abs() * (4.0 * p.unit)
        if self.error is not None:
            error = error + self.error
        return below(least, grown(error, p), p)


def upward_sum(value: Tensor, dims: tuple[int, ...], elements: int, p: Precision) -> Tensor:
    """Above the sum of non-negative numbers over a sample."""
    total = sum_over(value, dims)
    return grown(total * (1.0 + 2.0 * p.gamma(elements + 4)), p)


def underflow(
    size: Tensor, dims: tuple[int, ...], terms: int, elements: int, p: Precision
) -> Tensor:
    """What underflow of `terms` products in each coefficient may cost, `[1, batch]`."""
    reach = upward_sum(size.unsqueeze(0), dims, elements, p)
    return (reach + 1.0 * elements) * (16.0 * (terms + 4) * p.tiny)


def sum_sound(
    forms: tuple[SoundForm, ...], box: Outward, dims: tuple[int, ...], elements: int
) -> SoundForm:
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
    lost = upward_sum(size * (box.magnitude() * p.gamma(count)), dims, elements, p)
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
