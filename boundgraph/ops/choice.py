"""A choice between two tensors by a comparison that depends on the region."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval, as_interval
from boundgraph.domains.linear_form import LinearForm, sum_over
from boundgraph.ops._spec import Kind, OpCase, OpSpec, broadcast_batch, register


def _choose(a: Tensor, b: Tensor, x: Tensor, y: Tensor, *, strict: bool) -> Tensor:
    return torch.where(a > b if strict else a >= b, x, y)


def _decided(a: Any, b: Any, strict: bool) -> tuple[Tensor, Tensor]:
    """Where the comparison holds for all operands, and where it may hold for some.

    A NaN decides nothing.
    """
    left, right = as_interval(a), as_interval(b)
    if strict:
        return left.lower > right.upper, ~(left.upper <= right.lower)
    return left.lower >= right.upper, ~(left.upper < right.lower)


def _between(x: Any, y: Any) -> Interval:
    first, second = as_interval(x), as_interval(y)
    return Interval(
        torch.minimum(first.lower, second.lower), torch.maximum(first.upper, second.upper)
    )


def _interval(a: Any, b: Any, x: Any, y: Any, *, strict: bool) -> Interval:
    """Both sides together where the comparison is not decided."""
    certain, possible = _decided(a, b, strict)
    first, second, both = as_interval(x), as_interval(y), _between(x, y)

    def pick(one: Tensor, either: Tensor, other: Tensor) -> Tensor:
        return torch.where(certain, one, torch.where(possible, either, other))

    return Interval(
        pick(first.lower, both.lower, second.lower), pick(first.upper, both.upper, second.upper)
    )


def _backward(
    form: LinearForm,
    a: Any,
    b: Any,
    x: Any,
    y: Any,
    *,
    operand: int,
    carry: bool,
    sample_dims: tuple[int, ...],
    strict: bool,
    **_: Any,
) -> LinearForm:
    """Where it is decided the side that is chosen, elsewhere the range of both."""
    certain, possible = _decided(a, b, strict)
    coeff = form.coeff
    zero = torch.zeros_like(coeff)
    to_first, to_second = torch.where(certain, coeff, 0.0), torch.where(possible, 0.0, coeff)
    own = {2: to_first, 3: to_second}.get(operand, torch.where(certain, zero, zero))
    if not carry:
        return LinearForm(own)
    both = _between(x, y)
    open_ = torch.where(certain | ~possible, 0.0, coeff)
    term = torch.relu(open_) * both.lower - torch.relu(-open_) * both.upper
    if not isinstance(x, Interval):
        term = term + to_first * x
    if not isinstance(y, Interval):
        term = term + to_second * y
    return LinearForm(own, form.shifted(sum_over(term, sample_dims)))


def _sample(rng: random.Random) -> OpCase:
    shape = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 3)))
    bounded = rng.choice(((0,), (0, 2), (0, 1, 2, 3), (0, 1, 3), (2, 3)))
    return OpCase((shape,) * 4, {"strict": rng.random() < 0.5}, bounded=bounded)


register(
    OpSpec(
        "where_greater",
        Kind.SELECTION,
        _choose,
        interval=_interval,
        magnitude=lambda a, b, x, y, *, strict: x + y,
        batch=broadcast_batch,
        backward=_backward,
        sample=_sample,
        summary="x where a > b, else y; both where the region does not decide",
    )
)
