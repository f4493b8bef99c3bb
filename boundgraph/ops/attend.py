"""Weighted means by a softmax: attention as one op, whose bounds know that weights sum to one."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval, as_interval
from boundgraph.domains.linear_form import LinearForm, sum_over
from boundgraph.domains.rounding import Outward, Precision, below
from boundgraph.domains.symbolic import Symbolic, diagonal
from boundgraph.ops._spec import Kind, OpCase, OpSpec, Rounding, get, register
from boundgraph.ops.softmax import EXPONENT


def _attend(scores: Tensor, values: Tensor) -> Tensor:
    return torch.matmul(torch.softmax(scores, -1), values)


def _weights(scores: Any) -> Interval:
    """The exact range of each weight."""
    if not isinstance(scores, Interval):
        return Interval.point(torch.softmax(scores, -1))
    spec = get("softmax")
    assert spec is not None and spec.interval is not None
    found: Interval = spec.interval(scores, dim=-1)
    return found


def _lower_mean(weights: Interval, low: Tensor) -> Tensor:
    """The least Σ p·v over v >= low and weights in their ranges that sum to 1.

    For any κ, Σ p·v = κ + Σ p·(v − κ), and each product takes the weight's end that makes it
    least. κ = 0 gives the sum of the products one by one, κ = min v a number that is never
    below it; both rise when the ranges shrink.
    """
    least = low.amin(-2, keepdim=True)
    apart = torch.matmul(weights.lower, torch.relu(low)) - torch.matmul(
        weights.upper, torch.relu(-low)
    )
    return torch.maximum(apart, least + torch.matmul(weights.lower, low - least))


def _interval(scores: Any, values: Any) -> Interval:
    weights, v = _weights(scores), as_interval(values)
    return Interval(_lower_mean(weights, v.lower), -_lower_mean(weights, -v.upper))


def _sound(scores: Any, values: Any, *, terms: int, precision: Precision) -> Outward:
    """`_interval` rounded outward: each sum loses γ(n + 4) of its terms' sizes.

    The weights are enclosed as real numbers, which sum to 1 exactly.

    Args:
        terms: as declared, 8·n more than what a softmax's exponents take.
    """
    count = (terms - EXPONENT) // 8
    spec = get("softmax")
    assert spec is not None and spec.sound is not None
    x, v = (Outward.of(as_interval(side), precision) for side in (scores, values))
    weights = spec.sound(x, dim=-1, terms=EXPONENT + count, precision=precision)
    share = precision.gamma(count + 4)

    def lowest(low: Tensor) -> Tensor:
        above, under = torch.relu(low), torch.relu(-low)
        gain, loss = torch.matmul(weights.lower, above), torch.matmul(weights.upper, under)
        least = low.amin(-2, keepdim=True)
        rise = torch.matmul(weights.lower, low - least)
        return torch.maximum(
            below(gain - loss, (gain + loss) * (2.0 * share), precision),
            below(least + rise, (least.abs() + rise) * (2.0 * share), precision),
        )

    return Outward(lowest(v.lower), -lowest(-v.upper), precision)


def _symbolic(
    scores: Any,
    values: Any,
    *pre: Interval,
    block: str = "",
    batch_dim: int | None = None,
    features: tuple[int, ...] = (),
) -> Symbolic:
    """Weights c ± r of values V: κ + c·(V − κ), and an error of r·|V − κ|, for any κ."""
    weights = _weights(pre[0] if isinstance(scores, Symbolic) else scores)
    v = values if isinstance(values, Symbolic) else Symbolic(values, {})
    if not isinstance(scores, Symbolic):
        return v.map(
            lambda c: torch.matmul(weights.lower, c), lambda g: torch.matmul(weights.lower, g)
        )
    shift = v.center.mean(-2, keepdim=True)
    moved = v.map(
        lambda c: shift + torch.matmul(weights.center, c - shift),
        lambda g: torch.matmul(weights.center, g),
    )
    size = (v.center - shift).abs() + v.concretize().radius
    error = torch.matmul(weights.radius, size)
    return moved.with_block(block, diagonal(error, batch_dim, features))


def _backward(
    form: LinearForm,
    scores: Any,
    values: Any,
    *,
    operand: int,
    carry: bool,
    shapes: Any,
    target: Any,
    sample_dims: tuple[int, ...],
    **_: Any,
) -> LinearForm:
    """Planes of each product at the weight's lower end, then those of softmax.

    From (p − pl)(v − vl) >= 0 and (p − pl)(vu − v) >= 0: p·v >= pl·v + vl·p − pl·vl and
    p·v <= pl·v + vu·p − pl·vu. Their error is at most (p − pl)·(vu − vl), and as the weights sum
    to 1 so is the sum of these, up to the factor 1 − Σ pl; errors of the planes at the centre
    would add up over all entries.
    """
    weights, v = _weights(scores), as_interval(values)
    if operand == 1:
        coeff = torch.matmul(weights.lower.mT, form.coeff)
        return LinearForm(coeff, form.offset) if carry and _plain(scores) else LinearForm(coeff)
    positive, negative = torch.relu(form.coeff), -torch.relu(-form.coeff)
    pull = torch.matmul(positive, v.lower.mT) + torch.matmul(negative, v.upper.mT)
    term = None
    if carry:
        known = torch.matmul(weights.lower, v.lower), torch.matmul(weights.lower, v.upper)
        term = -sum_over(positive * known[0] + negative * known[1], sample_dims)
        if not isinstance(values, Interval):
            # Fixed values take no form: what their slope gives is known.
            term = term + sum_over(form.coeff * known[0], sample_dims)
    spec = get("softmax")
    assert spec is not None and spec.backward is not None
    found: LinearForm = spec.backward(
        LinearForm(pull, form.shifted(term) if carry else None),
        scores,
        operand=0,
        carry=carry,
        shapes=shapes[:1],
        target=shapes[0],
        sample_dims=sample_dims,
        dim=len(shapes[0]) - 1,
    )
    return found


def _plain(scores: Any) -> bool:
    return not isinstance(scores, Interval)


def _batch(batch_dims: Any, shapes: Any, out: Any, **_: Any) -> int | None:
    """As for a product of matrices: all but what is summed over stays apart."""
    found = {dim for dim in batch_dims if dim is not None}
    if batch_dims[0] == len(out) - 1 or batch_dims[1] == len(out) - 2:
        return None
    return found.pop() if len(found) == 1 else None


def _sample(rng: random.Random) -> OpCase:
    lead = tuple(rng.randint(1, 2) for _ in range(rng.randint(1, 2)))
    n, k, d = (rng.randint(1, 4) for _ in range(3))
    return OpCase(((*lead, n, k), (*lead, k, d)), bounded=rng.choice(((0,), (1,), (0, 1), (0, 1))))


def _magnitude(scores: Tensor, values: Tensor) -> Tensor:
    """Each term of a mean, and what is taken from it, is as large as the largest value."""
    rows = scores.sum(-1, keepdim=True) * 0.0
    return values.abs().amax(-2, keepdim=True) * 4.0 + rows


register(
    OpSpec(
        "attend",
        Kind.COMPOSITE,
        _attend,
        interval=_interval,
        symbolic=_symbolic,
        relaxed=True,
        magnitude=_magnitude,
        boundable=(0, 1),
        batch=_batch,
        # The ulps of a softmax, of each weight.
        rounding=Rounding(ulps=8, terms=lambda scores, values: EXPONENT + 8 * scores.shape[-1]),
        sound=_sound,
        backward=_backward,
        sample=_sample,
        summary="softmax(a) · b: a mean of rows of b, by weights that sum to one",
    )
)
