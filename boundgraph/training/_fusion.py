"""Bounds of the cross-entropy itself, and their mixture with interval bounds.

A program with `spec=CrossEntropy(classes)` bounds the loss with one backward row instead of
one per class; a tracked margin program gives backward and interval margins side by side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.domains.interval import Interval

# exp(−48) is 1e-21, below half a unit in the last place of 1 even in double precision.
_NEGLIGIBLE = 48.0


def fused_losses(negative: Tensor, margins: Tensor) -> tuple[Tensor, Tensor]:
    """Upper bounds of each sample's cross-entropy: backward, and from intervals.

    The backward form bounds `log S + t − 1` with S the sum of exponentials at the interval
    margins and `t·S` a linear bound of the sum; so `log S + log t` holds, and is tighter.
    t lies in (0, 1]; where rounding says otherwise it is moved up, which is sound, or down to 1,
    where the interval bound holds by itself.

    Args:
        negative: `[batch]` lower bounds of the negative loss.
        margins: `[batch, classes]` interval lower bounds of the margins.
    """
    total = margin_losses(margins)
    share = (1.0 - negative - total).clamp(torch.finfo(total.dtype).eps, 1.0)
    return total + share.log(), total


def fused_bound(outputs: tuple[Interval, ...], beta: Tensor | None) -> tuple[Tensor, Tensor]:
    """`(bound loss, certified share)` of a cross-entropy program.

    Args:
        outputs: negative loss and interval margins.
        beta: weight of the backward bound against the interval one; None for 1.
    """
    negative, margins = outputs
    backward, interval = fused_losses(negative.lower, margins.lower)
    loss = backward if beta is None else beta * backward + (1.0 - beta) * interval
    # Below log 2 no other class can have half of the probability, or the largest logit.
    proved = _proved(margins.lower) | (backward < math.log(2.0))
    return loss.mean(), proved.to(loss.dtype).mean()


def margin_bound(
    outputs: Interval | tuple[Interval, ...], beta: Tensor | None, *, others: bool = False
) -> tuple[Tensor, Tensor]:
    """The same from margins: cross-entropy at the lower bounds, which `beta` mixes row by row.

    Args:
        outputs: margins, or backward and interval margins.
        beta: as above.
        others: the label's row is missing and stands for 0.

    Source of the mixture: Zhang et al., CROWN-IBP (arXiv 1906.06316).
    """
    if isinstance(outputs, Interval):
        margins = outputs.lower
    else:
        backward, interval = (part.lower for part in outputs)
        assert beta is not None
        margins = beta * backward + (1.0 - beta) * interval
    if others:
        # The order of classes does not matter to what follows.
        margins = F.pad(margins, (1, 0))
    return margin_losses(margins).mean(), _proved(margins).to(margins.dtype).mean()


def margin_losses(margins: Tensor) -> Tensor:
    """`[batch]` cross-entropies at worst-case logits, from margins with a 0 at the label.

    The worst-case logits are the negated margins, and the one of the label is 0, so the loss
    is `log Σ exp(−m_j)` and no label is read: its gradient is one pass without a reduction.

    Classes with less than exp(−48) of the sum count as if they had that much, which changes no
    float, and get a gradient of 0 instead of one so small that products with it are denormal:
    a processor takes up to a hundred times as long over those, and each row of a backward
    bound is multiplied by the gradient of its margin.
    """
    logits = -margins
    least = logits.detach().amax(1, keepdim=True) - _NEGLIGIBLE
    return torch.logsumexp(torch.where(logits < least, least, logits), dim=1)


def clean_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """`[batch]` cross-entropies, `log Σ exp(z_j) − z_y`.

    For a compiler it is written out: torch's own has a reduction and a gather in its gradient,
    where here one pass gives it. Eagerly torch's own is fewer calls.
    """
    if not torch.compiler.is_compiling():
        return F.cross_entropy(logits, labels, reduction="none")
    own = labels.unsqueeze(1) == torch.arange(logits.shape[1], device=logits.device)
    return torch.logsumexp(logits, dim=1) - torch.where(own, logits, 0.0).sum(1)


def _proved(margins: Tensor) -> Tensor:
    # Row y is exactly 0, so all other rows above 0 makes classes − 1; NaN never counts.
    return (margins > 0).sum(1) == margins.shape[1] - 1
