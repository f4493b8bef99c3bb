"""Specification ops: classification margins, alone or merged into the last linear layer."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.rounding import Outward, Precision, grown
from boundgraph.domains.symbolic import Symbolic
from boundgraph.ops._kinds import structural, transpose_rule
from boundgraph.ops._sound import Centre
from boundgraph.ops._spec import (
    Kind,
    OpCase,
    OpSpec,
    Rounding,
    batch_first,
    register,
)
from boundgraph.ops.linear import in_blocks, linear_blocks


def _own_class(labels: Tensor, classes: int) -> Tensor:
    """`[batch, classes]`, true at each sample's label."""
    return labels.unsqueeze(1) == torch.arange(classes, device=labels.device)


def _labelled(values: Tensor, own: Tensor) -> Tensor:
    """`[batch, 1]`, each sample's entry at its label; exact.

    A masked sum instead of `gather`, whose gradient scatters: on a GPU that adds atomically,
    in an order that changes from run to run.
    """
    return torch.where(own, values, 0.0).sum(1, keepdim=True)


def _margin(logits: Tensor, labels: Tensor, *, classes: int) -> Tensor:
    return _labelled(logits, _own_class(labels, classes)) - logits


def _margin_interval(logits: Interval, labels: Tensor, *, classes: int) -> Interval:
    own = _own_class(labels, classes)
    lower = _labelled(logits.lower, own) - logits.upper
    upper = _labelled(logits.upper, own) - logits.lower
    return Interval(lower.masked_fill(own, 0.0), upper.masked_fill(own, 0.0))


def _margin_symbolic(logits: Symbolic, labels: Tensor, *, classes: int) -> Symbolic:
    own = _own_class(labels, classes)

    def block(generators: Tensor) -> Tensor:
        # A masked sum picks the labelled class without indexing, whose gradient scatters.
        picked = (generators * own).sum(2, keepdim=True)
        return picked - generators

    return logits.map(lambda c: _margin(c, labels, classes=classes), block)


def _margin_magnitude(logits: Tensor, labels: Tensor, *, classes: int) -> Tensor:
    return logits.gather(1, labels.unsqueeze(1)) + logits


def _margin_adjoint(
    coeff: Tensor, labels: Tensor, *, shapes: Any, target: Any, classes: int
) -> Tensor:
    return coeff.sum(-1, keepdim=True) * _own_class(labels, classes) - coeff


def _linear_margin_adjoint(
    coeff: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    *,
    shapes: Any,
    target: Any,
    classes: int,
    pairwise: bool,
) -> Tensor:
    logits = _margin_adjoint(coeff, labels, shapes=shapes, target=target, classes=classes)
    return torch.matmul(logits, weight)


def _linear_margin_constant(
    coeff: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    *,
    dims: tuple[int, ...],
    classes: int,
    pairwise: bool,
) -> Tensor:
    margins = _labelled(bias, _own_class(labels, classes)) - bias
    return (coeff * margins).sum(dims)


def _sample_margin(rng: random.Random) -> OpCase:
    classes = rng.randint(2, 5)
    return OpCase(((rng.randint(1, 4), classes), (-1,)), {"classes": classes})


register(
    OpSpec(
        "margin",
        Kind.AFFINE,
        _margin,
        interval=_margin_interval,
        symbolic=_margin_symbolic,
        backward=transpose_rule(_margin_adjoint),
        magnitude=_margin_magnitude,
        boundable=(0,),
        batch=batch_first,
        rounding=Rounding(ulps=1, terms=lambda *_, **__: 2),
        sample=_sample_margin,
        summary="f_y − f_j for every class j",
    )
)


def _linear_margin(
    x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, *, classes: int, pairwise: bool
) -> Tensor:
    return _margin(F.linear(x, weight, bias), labels, classes=classes)


def _linear_margin_interval(
    x: Interval, weight: Tensor, bias: Tensor, labels: Tensor, *, classes: int, pairwise: bool
) -> Interval:
    """Centre from the logits; radius through |W_y − W_j|, which is where merging gains.

    With few classes the C·C difference rows are shared by the batch and the label picks
    among the products; with many, each sample has its own C rows. Weights are not indexed,
    since the gradient of that would scatter: a product with one-hot rows picks them, exactly.
    """
    center = _linear_margin(x.center, weight, bias, labels, classes=classes, pairwise=pairwise)
    if pairwise:
        rows = (weight.unsqueeze(1) - weight.unsqueeze(0)).abs().flatten(0, 1)
        all_pairs = F.linear(x.radius, rows).unflatten(1, (classes, classes))
        own = _own_class(labels, classes).unsqueeze(2)
        radius = (all_pairs * own).sum(1)
    else:
        one_hot = _own_class(labels, classes).to(weight.dtype)
        difference = (torch.matmul(one_hot, weight).unsqueeze(1) - weight).abs()
        radius = torch.matmul(difference, x.radius.unsqueeze(2)).squeeze(2)
    return Interval.from_center_radius(center, radius)


def _linear_margin_sound(
    x: Outward,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    *,
    classes: int,
    pairwise: bool,
    terms: int,
    precision: Precision,
    **centre: Any,
) -> Outward:
    """Both logits err by γ(n)(|W||c| + |b|) each, and so does their difference, by one more.

    Declared are n + 2 roundings of a margin. The radius loses the same share of itself.
    """
    how, _ = Centre.of(terms, centre)
    found = _linear_margin_interval(x, weight, bias, labels, classes=classes, pairwise=pairwise)
    if how.wide:
        wide = F.linear(x.center.double(), weight.double(), bias.double())
        center = _margin(wide, labels, classes=classes).to(x.center.dtype)
    elif how.parts > 1:
        center = _margin(
            linear_blocks(x.center, weight, bias, parts=how.parts), labels, classes=classes
        )
    else:
        center = found.center
    size = F.linear(x.center.abs(), weight.abs(), bias.abs())
    lost = 2.0 * precision.gamma(how.full + 4)
    both = (size.gather(1, labels.unsqueeze(1)) + size) * (1.0 + lost)
    error = both * how.share(precision) + center.abs() * (2.0 * precision.unit)
    error = error + found.radius * lost + 32.0 * how.full * precision.tiny
    radius = grown(found.radius + error, precision)
    total = Outward.ball(center, radius, precision)
    own = _own_class(labels, classes)
    return Outward(total.lower.masked_fill(own, 0.0), total.upper.masked_fill(own, 0.0), precision)


def _linear_margin_symbolic(
    x: Symbolic, weight: Tensor, bias: Tensor, labels: Tensor, *, classes: int, pairwise: bool
) -> Symbolic:
    logits = x.map(lambda c: F.linear(c, weight, bias), lambda g: F.linear(g, weight))
    return _margin_symbolic(logits, labels, classes=classes)


def _linear_margin_magnitude(
    x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, *, classes: int, pairwise: bool
) -> Tensor:
    logits = F.linear(x, weight.abs(), bias.abs())
    return logits.gather(1, labels.unsqueeze(1)) + logits


def _sample_linear_margin(rng: random.Random) -> OpCase:
    batch, classes, width = rng.randint(1, 3), rng.randint(2, 5), rng.randint(1, 5)
    shapes: Any = ((batch, width), (classes, width), (classes,), (-1,))
    return OpCase(shapes, {"classes": classes, "pairwise": rng.random() < 0.5})


register(
    OpSpec(
        "linear_margin",
        Kind.AFFINE,
        _linear_margin,
        interval=_linear_margin_interval,
        sound=_linear_margin_sound,
        symbolic=_linear_margin_symbolic,
        backward=transpose_rule(_linear_margin_adjoint, _linear_margin_constant),
        magnitude=_linear_margin_magnitude,
        boundable=(0,),
        batch=batch_first,
        rounding=Rounding(
            ulps=1,
            terms=lambda x, weight, *_, **__: weight.shape[1] + 2,
            blocks=lambda x, weight, *_, **__: in_blocks(weight.shape[1]),
        ),
        sample=_sample_linear_margin,
        summary="margins merged into the last linear layer",
    )
)


def _behind(labels: Tensor, classes: int) -> Tensor:
    """`[batch, classes − 1]`: the entries that come after the label among all classes."""
    return torch.arange(classes - 1, device=labels.device) >= labels.unsqueeze(1)


def _other_classes(values: Tensor, labels: Tensor, *, classes: int) -> Tensor:
    # Two shifted copies instead of an index, whose gradient would scatter.
    after = values.narrow(-1, 1, classes - 1)
    return torch.where(_behind(labels, classes), after, values.narrow(-1, 0, classes - 1))


def _other_classes_adjoint(
    coeff: Tensor, labels: Tensor, *, shapes: Any, target: Any, classes: int
) -> Tensor:
    column, own = torch.arange(classes, device=labels.device), labels.unsqueeze(1)
    # Both shifts are views of one padded copy, and nothing is added.
    padded = F.pad(coeff, (1, 1))
    before, after = padded.narrow(-1, 1, classes), padded.narrow(-1, 0, classes)
    return torch.where(column < own, before, torch.where(column > own, after, 0.0))


structural(
    "other_classes",
    _other_classes,
    lifted=_other_classes,
    adjoint=_other_classes_adjoint,
    batch=batch_first,
    sample=_sample_margin,
    summary="the entries of all classes but the label",
)


def _compose_weight(outer: Tensor, inner: Tensor) -> Tensor:
    return torch.matmul(outer, inner)


def _compose_bias(outer: Tensor, inner: Tensor, *outer_bias: Tensor) -> Tensor:
    out = F.linear(inner, outer)
    return out + outer_bias[0] if outer_bias else out


def _zeros_rows(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight.select(1, 0))


for _name, _fn, _text in (
    ("compose_weight", _compose_weight, "matrix of two linear layers in a row"),
    ("compose_bias", _compose_bias, "offset of two linear layers in a row"),
    ("zero_bias", _zeros_rows, "a zero for each row of a matrix"),
):
    register(OpSpec(_name, Kind.CONSTANT, _fn, boundable=(), summary=_text))
