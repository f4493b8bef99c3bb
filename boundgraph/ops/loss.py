"""The cross-entropy of a classifier as a function of its margins, for training."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm
from boundgraph.ops._spec import Kind, OpCase, OpSpec, Rounding, batch_first, register, to_ends


def _negative_loss(margins: Tensor) -> Tensor:
    return -torch.logsumexp(-margins, dim=1)


def _backward(
    form: LinearForm,
    pre: Interval,
    *,
    operand: int,
    carry: bool,
    shapes: tuple[tuple[int, ...], ...],
    target: tuple[int, ...],
    sample_dims: tuple[int, ...],
) -> LinearForm:
    """Lines around `N(m) = −log Σ exp(−m_j)` over the box `l <= m <= u`.

    Above: N is concave, so its tangent at the centre. Below: the chord of each exponential,
    `exp(−m_j) <= exp(−l_j)·(1 − s_j (m_j − l_j))` with `s_j = (1 − exp(−w_j)) / w_j` and
    w = u − l; their sum is `S·(1 − Σ p_j s_j (m_j − l_j))` with S = Σ exp(−l_j) and
    p = softmax(−l); and `log t <= t − 1` at t = that sum over S, so that
    `N(m) >= −log S + Σ p_j s_j (m_j − l_j)`.

    Source: Xu et al., loss fusion (arXiv 2002.12920).
    """
    width = pre.upper - pre.lower
    wide = width > 0
    safe = torch.where(wide, width, 1.0)
    chord = torch.where(wide, -torch.expm1(-safe) / safe, 1.0)
    below = torch.softmax(-pre.lower, dim=1) * chord
    below_offset = _negative_loss(pre.lower) - (below * pre.lower).sum(1)
    above = torch.softmax(-pre.center, dim=1)
    above_offset = _negative_loss(pre.center) - (above * pre.center).sum(1)
    positive, negative = form.coeff.clamp(min=0.0), form.coeff.clamp(max=0.0)
    coeff = positive.unsqueeze(-1) * below + negative.unsqueeze(-1) * above
    term = positive * below_offset + negative * above_offset
    return LinearForm(coeff, form.shifted(term if carry else None))


def _sample(rng: random.Random) -> OpCase:
    return OpCase(((rng.randint(1, 3), rng.randint(2, 5)),), low=-6.0, high=6.0)


def _magnitude(margins: Tensor, **_: Any) -> Tensor:
    # Beside the largest entry, log of up to C terms.
    return margins.abs().amax(1) + 1.0


negative_loss = register(
    OpSpec(
        "negative_loss",
        Kind.COMPOSITE,
        _negative_loss,
        interval=to_ends(_negative_loss),
        backward=_backward,
        magnitude=_magnitude,
        boundable=(0,),
        batch=batch_first,
        rounding=Rounding(ulps=4, terms=lambda margins, **_: margins.shape[1] + 8),
        sample=_sample,
        summary="−log Σ exp(−margin): minus the cross-entropy at the label",
    )
)
