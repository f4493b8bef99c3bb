"""Linear forms, what a backward pass carries from the specification to the input, and lines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval


@dataclass(frozen=True)
class Lines:
    """`lower_slope·x + lower_offset <= f(x) <= upper_slope·x + upper_offset` over an interval.

    All of the operand's shape.

    Args:
        from_origin: `lower_offset` is zero everywhere, which saves a product.
    """

    lower_slope: Tensor
    lower_offset: Tensor
    upper_slope: Tensor
    upper_offset: Tensor
    from_origin: bool = False

    @classmethod
    def constant(cls, y: Interval) -> Lines:
        """The range of the function as two horizontal lines."""
        zero = torch.zeros_like(y.any_part)
        return cls(zero, y.lower, zero, y.upper)


def sum_over(value: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The sum over the dimensions of a sample, which may be a single number.

    torch takes no dimensions for all of them, which would add up the batch.
    """
    return value.sum(dims) if dims else value


def times_constant(coeff: Tensor, constant: Tensor) -> Tensor:
    """Coefficients times a constant that may be infinite, as what a mask hides is.

    A coefficient of 0 gives 0, not NaN, and its gradient is finite.
    """
    return coeff * torch.where(coeff == 0.0, 0.0, constant)


class LinearForm:
    """A lower bound `Σ coeff[r]·v + offset[r]` of row r, linear in a value v.

    Args:
        coeff: `[rows, *value shape]`.
        offset: `[rows, batch]` (`[rows]` where the value has no batch); None means zero.
    """

    __slots__ = ("coeff", "offset")

    def __init__(self, coeff: Tensor, offset: Tensor | None = None) -> None:
        self.coeff = coeff
        self.offset = offset

    def shifted(self, term: Tensor | None) -> Tensor | None:
        """The offset plus a term, either of which may be absent."""
        if term is None:
            return self.offset
        return term if self.offset is None else self.offset + term

    def through(self, lines: Lines, dims: tuple[int, ...]) -> LinearForm:
        """Replace v = f(w) by the line that keeps the bound: the sign of the coefficient picks.

        A positive coefficient needs a lower bound of f, a negative one an upper bound.
        """
        # relu and not clamp: its gradient is a single masked copy.
        positive, negative = torch.relu(self.coeff), -torch.relu(-self.coeff)
        coeff = torch.addcmul(positive * lines.lower_slope, negative, lines.upper_slope)
        term = dot(negative, lines.upper_offset, dims)
        if not lines.from_origin:
            term = term + dot(positive, lines.lower_offset, dims)
        return LinearForm(coeff, self.shifted(term))

    def through_band(
        self, slope: Tensor, middle: Tensor, half_gap: Tensor, dims: tuple[int, ...]
    ) -> LinearForm:
        """Replace v = f(w) by parallel lines `slope·w + middle ± half_gap` around f.

        The slope is the same for either sign of a coefficient, which therefore needs no split.
        """
        term = dot(self.coeff, middle, dims) - dot(self.coeff.abs(), half_gap, dims)
        return LinearForm(self.coeff * slope, self.shifted(term))

    def lower_over(self, box: Interval, dims: tuple[int, ...]) -> Tensor:
        """The least value over a box, `[rows, batch]`: centre minus |coeff|·radius."""
        least = sum_over(self.coeff * box.center - self.coeff.abs() * box.radius, dims)
        shifted = self.shifted(least)
        assert shifted is not None
        return shifted


def dot(coeff: Tensor, value: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Coefficients `[rows, *shape]` times a value, summed over a sample: `[rows, batch]`.

    A product of matrices where the batch comes first, so that nothing of the coefficients'
    size is made.
    """
    if not dims or dims != tuple(range(2, 2 + len(dims))):
        return sum_over(coeff * value, dims)
    columns = value.flatten(1).unsqueeze(2)
    return torch.matmul(coeff.flatten(2).transpose(0, 1), columns).squeeze(2).transpose(0, 1)


def sum_forms(*forms: LinearForm) -> LinearForm:
    """The form of a value that is read several times."""
    coeff, offset = forms[0].coeff, forms[0].offset
    for form in forms[1:]:
        coeff = coeff + form.coeff
        offset = form.shifted(offset)
    return LinearForm(coeff, offset)


def identity_rows(like: Tensor, shape: tuple[int, ...], batch_dim: int | None) -> Tensor:
    """One row per element of a sample.

    Args:
        like: any tensor, for dtype and device.
        shape: shape of the value; 1 at `batch_dim` for rows shared by all samples.
        batch_dim: where the batch sits in the value; None where there is none.

    Returns:
        `[rows, *shape]`, expanded along the batch.
    """
    features = tuple(size for dim, size in enumerate(shape) if dim != batch_dim)
    count = math.prod(features)
    rows = torch.eye(count, dtype=like.dtype, device=like.device).reshape((-1, *features))
    if batch_dim is None:
        return rows
    return rows.unsqueeze(batch_dim + 1).expand((-1, *shape))


def one_hot_rows(
    like: Tensor, *, shape: tuple[int, ...], batch_dim: int | None, units: Tensor
) -> LinearForm:
    """Rows for some elements of a sample.

    Args:
        like: any tensor, for dtype and device.
        shape: shape of the value; 1 at `batch_dim` for rows shared by all samples.
        batch_dim: where the batch sits in the value; None where there is none.
        units: `[rows]` flat indices of elements, or `[batch, rows]` where each sample has
            its own.

    Returns:
        Coefficients `[rows, *shape]`.
    """
    features = tuple(size for dim, size in enumerate(shape) if dim != batch_dim)
    count = math.prod(features)
    if batch_dim is None:
        units = units.reshape(-1)
    rows = torch.zeros((*units.shape, count), dtype=like.dtype, device=like.device)
    rows = rows.scatter(-1, units.unsqueeze(-1), 1.0).unflatten(-1, features or (1,))
    if not features:
        rows = rows.squeeze(-1)
    if batch_dim is None:
        return LinearForm(rows)
    if units.dim() == 2:
        return LinearForm(rows.movedim(0, batch_dim + 1))
    return LinearForm(rows.unsqueeze(batch_dim + 1).expand((-1, *shape)))


def spread_rows(form: LinearForm, places: Tensor, rows: int, batch_dim: int) -> LinearForm:
    """Deal rows that all samples share out to the samples.

    Args:
        form: `[rows, …, 1, …]`, or twice as many where negated rows follow.
        places: `[dealt, batch]`, which row each sample wants.
        rows: rows of `form`, without the negated ones.
        batch_dim: dimension of the coefficient that is 1.
    """
    if len(form.coeff) == 2 * rows:
        places = torch.cat([places, places + rows])
    coeff = form.coeff.squeeze(batch_dim)[places].movedim(1, batch_dim)
    offset = None if form.offset is None else form.offset.squeeze(1)[places]
    return LinearForm(coeff, offset)
