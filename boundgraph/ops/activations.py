"""relu, leaky_relu, sigmoid, tanh and the identities that look like activations."""

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
from boundgraph.relaxations.relaxation import Parallel
from boundgraph.relaxations.relu import leaky_relu_parallel, relu_lines, relu_parallel
from boundgraph.relaxations.s_shaped import sigmoid_parallel, tanh_parallel

aten = torch.ops.aten


def sample_elementwise(low: float = -4.0, high: float = 4.0) -> Any:
    def sample(rng: random.Random) -> OpCase:
        shape = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 3)))
        return OpCase((shape,), low=low, high=high)

    return sample


relu = elementwise(
    "relu",
    F.relu,
    parallel=relu_parallel,
    lines=relu_lines,
    learnable=True,
    kinks=lambda: (0.0,),
    rounding=EXACT,
    sample=sample_elementwise(),
    summary="max(x, 0)",
)


@lowers(F.relu, torch.relu, "Tensor.relu", aten.relu.default)
@lowers(F.relu_, torch.relu_, "Tensor.relu_", aten.relu_.default)
def _(b: Lowering, input: Value, inplace: bool = False) -> Value:
    return b.emit("relu", input)


def _leaky(x: Tensor, *, negative_slope: float) -> Tensor:
    return F.leaky_relu(x, negative_slope)


def _leaky_interval(x: Interval, *, negative_slope: float) -> Interval:
    lower, upper = (
        _leaky(x.lower, negative_slope=negative_slope),
        _leaky(x.upper, negative_slope=negative_slope),
    )
    if negative_slope >= 0.0:
        return Interval(lower, upper)
    # A negative slope makes a valley with its bottom, 0, at the origin.
    straddles = (x.lower < 0.0) & (x.upper > 0.0)
    smallest = torch.minimum(lower, upper)
    return Interval(torch.where(straddles, 0.0, smallest), torch.maximum(lower, upper))


def _leaky_lines(x: Interval, *, negative_slope: float) -> Parallel:
    if 0.0 <= negative_slope <= 1.0:
        return leaky_relu_parallel(x, negative_slope)
    ends = _leaky_interval(x, negative_slope=negative_slope)
    return Parallel(torch.zeros_like(ends.center), ends.center, ends.radius)


def _sample_leaky(rng: random.Random) -> OpCase:
    case = sample_elementwise()(rng)
    slope = rng.choice((0.01, 0.3, 1.0, 2.0, -0.5))
    return OpCase(case.shapes, {"negative_slope": slope})


leaky_relu = elementwise(
    "leaky_relu",
    _leaky,
    interval=_leaky_interval,
    parallel=_leaky_lines,
    kinks=lambda negative_slope: (0.0,) if 0.0 <= negative_slope <= 1.0 else None,
    rounding=Rounding(ulps=1),
    sample=_sample_leaky,
    summary="max(x, 0) + s·min(x, 0)",
)


@lowers(F.leaky_relu, aten.leaky_relu.default, F.leaky_relu_, aten.leaky_relu_.default)
def _(b: Lowering, input: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    return b.emit("leaky_relu", input, negative_slope=float(negative_slope))


sigmoid = elementwise(
    "sigmoid",
    torch.sigmoid,
    parallel=sigmoid_parallel,
    rounding=Rounding(ulps=8),
    sample=sample_elementwise(-12.0, 12.0),
    summary="1 / (1 + exp(−x))",
)


@lowers(torch.sigmoid, F.sigmoid, "Tensor.sigmoid", aten.sigmoid.default)
@lowers(torch.sigmoid_, "Tensor.sigmoid_", aten.sigmoid_.default, torch.special.expit)
def _(b: Lowering, input: Value) -> Value:
    return b.emit("sigmoid", input)


tanh = elementwise(
    "tanh",
    torch.tanh,
    parallel=tanh_parallel,
    rounding=Rounding(ulps=8),
    sample=sample_elementwise(-8.0, 8.0),
    summary="hyperbolic tangent",
)


@lowers(torch.tanh, F.tanh, "Tensor.tanh", aten.tanh.default)
@lowers(torch.tanh_, "Tensor.tanh_", aten.tanh_.default)
def _(b: Lowering, input: Value) -> Value:
    return b.emit("tanh", input)


def _reciprocal_interval(x: Interval) -> Interval:
    """Decreasing on each side of 0; unbounded where the operand can be 0."""
    safe = (x.lower > 0.0) | (x.upper < 0.0)
    lower = torch.where(safe, 1.0 / torch.where(safe, x.upper, 1.0), -torch.inf)
    upper = torch.where(safe, 1.0 / torch.where(safe, x.lower, 1.0), torch.inf)
    return Interval(lower, upper)


reciprocal = elementwise(
    "reciprocal",
    torch.reciprocal,
    interval=_reciprocal_interval,
    rounding=Rounding(ulps=1),
    sample=sample_elementwise(-2.0, 4.0),
    summary="1 / x; infinite bounds where x can be 0",
)


@lowers(torch.reciprocal, "Tensor.reciprocal", aten.reciprocal.default)
def _(b: Lowering, input: Value) -> Value:
    return b.emit("reciprocal", input)


def _exp_interval(x: Interval) -> Interval:
    """Where eˣ overflows it lies above every finite number, and below infinity."""
    lower = torch.nan_to_num(x.lower.exp(), nan=torch.nan)
    return Interval(lower, x.upper.exp())


exp = elementwise(
    "exp",
    torch.exp,
    interval=_exp_interval,
    rounding=Rounding(ulps=8),
    sample=sample_elementwise(),
    summary="eˣ",
)


@lowers(torch.exp, "Tensor.exp", aten.exp.default)
def _(b: Lowering, input: Value) -> Value:
    return b.emit("exp", input)


@lowers(
    torch.nn.Identity,
    "Tensor.contiguous",
    "Tensor.clone",
    torch.clone,
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
        help="call model.eval() before bounding or certifying",
    )
