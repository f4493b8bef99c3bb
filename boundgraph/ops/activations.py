"""relu and the activations that are linear in pieces; identities that look like activations."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.ir.program import Value
from boundgraph.ops._kinds import elementwise
from boundgraph.ops._spec import EXACT, Lowering, OpCase, Rounding, lowers
from boundgraph.ops._spelling import spell, uniform, with_attrs
from boundgraph.relaxations.fallback import Fallback
from boundgraph.relaxations.piecewise import PiecewiseLinear
from boundgraph.relaxations.relaxation import Curve, Parallel
from boundgraph.relaxations.relu import leaky_relu_parallel, relu_lines, relu_parallel
from boundgraph.relaxations.turns import Turn, between

aten = torch.ops.aten
KINK = Turn(0.0, 0.0, 0.0)

relu = elementwise(
    "relu",
    F.relu,
    parallel=relu_parallel,
    lines=relu_lines,
    learnable=True,
    kinks=lambda: (0.0,),
    rounding=EXACT,
    sample=uniform(),
    summary="max(x, 0)",
)
spell("relu", "relu_")


def _leaky(x: Tensor, *, negative_slope: float) -> Tensor:
    return F.leaky_relu(x, negative_slope)


def _leaky_interval(x: Interval, *, negative_slope: float) -> Interval:
    """A negative slope makes a valley with its bottom, 0, at the origin."""
    turns = (KINK,) if negative_slope < 0.0 else ()
    return between(with_attrs(_leaky, {"negative_slope": negative_slope}), turns)(x)


def _leaky_curve(*, negative_slope: float) -> Curve:
    return PiecewiseLinear((KINK,))


def _leaky_parallel(x: Interval, *, negative_slope: float) -> Parallel:
    if 0.0 <= negative_slope <= 1.0:
        return leaky_relu_parallel(x, negative_slope)
    ends = _leaky_interval(x, negative_slope=negative_slope)
    return Parallel(torch.zeros_like(ends.center), ends.center, ends.radius)


leaky_relu = elementwise(
    "leaky_relu",
    _leaky,
    interval=_leaky_interval,
    kinks=lambda negative_slope: (0.0,) if 0.0 <= negative_slope <= 1.0 else None,
    curve=_leaky_curve,
    parallel=_leaky_parallel,
    rounding=Rounding(ulps=1),
    sample=uniform(negative_slope=(0.01, 0.3, 1.0, 2.0, -0.5)),
    summary="max(x, 0) + s·min(x, 0)",
)


@lowers(F.leaky_relu, aten.leaky_relu.default, F.leaky_relu_, aten.leaky_relu_.default)
def _(b: Lowering, input: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    return b.emit("leaky_relu", input, negative_slope=float(negative_slope))


@lowers(F.rrelu, torch.rrelu, aten.rrelu.default)
def _(
    b: Lowering,
    input: Value,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
    generator: Any = None,
) -> Value:
    if training:
        return b.reject(
            "rrelu is in training mode: its slope is random",
            help="call model.eval() before bounding or certifying",
        )
    return b.emit("leaky_relu", input, negative_slope=(lower + upper) / 2)


def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    return torch.where(x > 0, x, weight * x)


def _prelu_interval(x: Interval, weight: Tensor) -> Interval:
    return between(lambda points: _prelu(points, weight), (KINK,))(x)


def _prelu_curve(weight: Tensor) -> Curve:
    return PiecewiseLinear((KINK,))


def _sample_prelu(rng: random.Random) -> OpCase:
    channels = rng.randint(1, 4)
    spatial = tuple(rng.randint(1, 3) for _ in range(rng.randint(0, 2)))
    shape = (rng.randint(1, 3), channels, *spatial)
    return OpCase((shape, (channels, *(1,) * len(spatial))))


elementwise(
    "prelu",
    _prelu,
    interval=_prelu_interval,
    curve=_prelu_curve,
    rounding=Rounding(ulps=1),
    sample=_sample_prelu,
    summary="max(x, 0) + w·min(x, 0) with a slope for each channel",
)


@lowers(F.prelu, torch.prelu, "Tensor.prelu", aten.prelu.default)
def _(b: Lowering, input: Value, weight: Value) -> Value:
    if b.depends(weight):
        return b.reject("prelu with a weight that depends on the region has no bound rule")
    rank = len(b.shape(input))
    shape = (*b.shape(weight), *(1,) * (rank - 2)) if rank > 1 else b.shape(weight)[: 0 or rank]
    return b.emit("prelu", input, b.emit("reshape", weight, shape=shape))


def _clamp(x: Tensor, *, low: float | None, high: float | None) -> Tensor:
    return torch.clamp(x, low, high)


def _clamp_curve(*, low: float | None, high: float | None) -> Curve:
    if low is not None and high is not None and low >= high:
        return PiecewiseLinear(())
    return PiecewiseLinear(tuple(Turn(c, c, c) for c in (low, high) if c is not None))


def _sample_clamp(rng: random.Random) -> OpCase:
    attrs = {"low": rng.choice((-1.0, None, 0.5)), "high": rng.choice((1.0, 0.5, 2.0))}
    return OpCase(uniform()(rng).shapes, attrs)


elementwise(
    "clamp",
    _clamp,
    curve=_clamp_curve,
    rounding=EXACT,
    sample=_sample_clamp,
    summary="min(max(x, low), high); hardtanh and relu6 are clamps",
)


def clamp(b: Lowering, input: Value, low: Any, high: Any) -> Value:
    """A clamp to numbers, or to tensors of any shape that broadcasts."""
    number = (int, float, type(None))
    if isinstance(low, number) and isinstance(high, number):
        if low is None and high is None:
            return b.reject("clamp needs a lower or an upper limit")
        ends = (None if end is None else float(end) for end in (low, high))
        return b.emit("clamp", input, **dict(zip(("low", "high"), ends, strict=True)))
    for op, limit in (("maximum", low), ("minimum", high)):
        if limit is not None:
            input = b.emit(op, *b.broadcast(input, limit))
    return input


@lowers(torch.clamp, torch.clip, "Tensor.clamp", "Tensor.clip", aten.clamp.default)
@lowers(aten.clip.default, aten.clamp.Tensor, aten.clip.Tensor)
def _(b: Lowering, input: Value, min: Any = None, max: Any = None) -> Value:
    return clamp(b, input, min, max)


@lowers(torch.clamp_min, "Tensor.clamp_min", aten.clamp_min.default, aten.clamp_min.Tensor)
def _(b: Lowering, input: Value, min: Any) -> Value:
    return clamp(b, input, min, None)


@lowers(torch.clamp_max, "Tensor.clamp_max", aten.clamp_max.default, aten.clamp_max.Tensor)
def _(b: Lowering, input: Value, max: Any) -> Value:
    return clamp(b, input, None, max)


@lowers(F.hardtanh, F.hardtanh_, aten.hardtanh.default)
def _(
    b: Lowering, input: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Value:
    return clamp(b, input, min_val, max_val)


@lowers(F.relu6, aten.relu6.default)
def _(b: Lowering, input: Value, inplace: bool = False) -> Value:
    return clamp(b, input, 0.0, 6.0)


elementwise(
    "hardsigmoid",
    lambda x: F.hardsigmoid(x),
    curve=PiecewiseLinear((Turn(-3.0, 0.0, 0.0), Turn(3.0, 1.0, 1.0))),
    magnitude=lambda x: x.clamp(max=3.0) / 6.0 + 0.5,
    rounding=Rounding(ulps=2, terms=lambda *_, **__: 3),
    sample=uniform(-5.0, 5.0),
    summary="relu6(x + 3) / 6",
)


def _hardswish_slope(x: Tensor) -> Tensor:
    inner = x / 3.0 + 0.5
    return torch.where(x > 3.0, 1.0, torch.where(x < -3.0, 0.0, inner))


elementwise(
    "hardswish",
    lambda x: F.hardswish(x),
    interval=between(F.hardswish, (Turn(-1.5, -0.375, -0.375),)),
    curve=Fallback(between(_hardswish_slope, (Turn(-3.0, -0.5, 0.0), Turn(3.0, 1.0, 1.5)))),
    magnitude=lambda x: x,
    rounding=Rounding(ulps=4, terms=lambda *_, **__: 4),
    sample=uniform(-5.0, 5.0),
    summary="x·relu6(x + 3) / 6",
)


def _inplace(op: str) -> Any:
    def lower(b: Lowering, input: Value, inplace: bool = False) -> Value:
        return b.emit(op, input)

    return lower


lowers(F.hardsigmoid, aten.hardsigmoid.default)(_inplace("hardsigmoid"))
lowers(F.hardswish, aten.hardswish.default)(_inplace("hardswish"))


def _shrink_turns(lambd: float) -> tuple[Turn, Turn]:
    return Turn(-lambd, 0.0, 0.0), Turn(lambd, 0.0, 0.0)


def _softshrink_curve(*, lambd: float) -> Curve:
    return PiecewiseLinear(_shrink_turns(lambd))


elementwise(
    "softshrink",
    lambda x, *, lambd: F.softshrink(x, lambd),
    curve=_softshrink_curve,
    magnitude=lambda x, *, lambd: x + lambd,
    rounding=Rounding(ulps=1, terms=lambda *_, **__: 2),
    sample=uniform(lambd=(0.5, 0.0, 0.3)),
    summary="x moved towards 0 by λ, 0 within λ of it",
)


def _hardshrink(x: Tensor, *, lambd: float) -> Tensor:
    return F.hardshrink(x, lambd)


def _hardshrink_turns(lambd: float) -> tuple[Turn, ...]:
    return Turn(-lambd, -lambd, 0.0), Turn(lambd, 0.0, lambd)


def _hardshrink_interval(x: Interval, *, lambd: float) -> Interval:
    return between(with_attrs(_hardshrink, {"lambd": lambd}), _hardshrink_turns(lambd))(x)


def _hardshrink_curve(*, lambd: float) -> Curve:
    return PiecewiseLinear(_hardshrink_turns(lambd))


elementwise(
    "hardshrink",
    _hardshrink,
    interval=_hardshrink_interval,
    curve=_hardshrink_curve,
    rounding=Rounding(ulps=1),
    sample=uniform(lambd=(0.5, 0.0, 0.3)),
    summary="0 within λ of 0, else x",
)


@lowers(F.softshrink, aten.softshrink.default)
def _(b: Lowering, input: Value, lambd: float = 0.5) -> Value:
    return b.emit("softshrink", input, lambd=float(lambd))


@lowers(F.hardshrink, torch.hardshrink, "Tensor.hardshrink", aten.hardshrink.default)
def _(b: Lowering, input: Value, lambd: float = 0.5) -> Value:
    return b.emit("hardshrink", input, lambd=float(lambd))


def _threshold(x: Tensor, *, threshold: float, value: float) -> Tensor:
    return F.threshold(x, threshold, value)


def _threshold_turn(threshold: float, value: float) -> tuple[Turn]:
    return (Turn(threshold, min(threshold, value), max(threshold, value)),)


def _threshold_interval(x: Interval, *, threshold: float, value: float) -> Interval:
    fn = with_attrs(_threshold, {"threshold": threshold, "value": value})
    return between(fn, _threshold_turn(threshold, value))(x)


def _threshold_curve(*, threshold: float, value: float) -> Curve:
    return PiecewiseLinear(_threshold_turn(threshold, value))


elementwise(
    "threshold",
    _threshold,
    interval=_threshold_interval,
    curve=_threshold_curve,
    rounding=Rounding(ulps=1),
    sample=uniform(threshold=(0.1, -1.0), value=(0.0, 2.0, -3.0)),
    summary="x above a threshold, else a number",
)


@lowers(F.threshold, torch.threshold, aten.threshold.default)
def _(b: Lowering, input: Value, threshold: float, value: float, inplace: bool = False) -> Value:
    return b.emit("threshold", input, threshold=float(threshold), value=float(value))


@lowers(
    torch.nn.Identity,
    "Tensor.contiguous",
    "Tensor.clone",
    torch.clone,
    torch.positive,
    "Tensor.positive",
    aten.positive.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
)
def _(b: Lowering, input: Value, **_: Any) -> Value:
    return input


@lowers(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
def _(
    b: Lowering, input: Value, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Value:
    return _dropout(b, input, p, training)


@lowers(aten.dropout.default, aten.feature_dropout.default, aten.dropout_.default)
def _(b: Lowering, input: Value, p: float, train: bool) -> Value:
    return _dropout(b, input, p, train)


def _dropout(b: Lowering, input: Value, p: float, training: bool) -> Value:
    if not training or p == 0.0:
        return input
    return b.reject(
        "dropout is in training mode: its output is random, so no bound on it is a "
        "property of the network",
        help="call model.eval() before bounding or certifying; in MixedLoss, dropout must be a "
        "layer such as nn.Dropout, whose mask is shared with the clean pass",
    )
