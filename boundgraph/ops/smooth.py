"""Smooth activations: sigmoid, tanh, softplus, elu and its kin, gelu, silu, mish."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.ir.program import Value
from boundgraph.ops._kinds import elementwise
from boundgraph.ops._spec import Lowering, Rounding, lowers
from boundgraph.ops._spelling import spell, uniform
from boundgraph.relaxations.curves import Convex, SinglePeak
from boundgraph.relaxations.fallback import Fallback
from boundgraph.relaxations.relaxation import Curve, Parallel, Scalar
from boundgraph.relaxations.turns import Turn, between, turn_of

aten = torch.ops.aten
Bends = tuple[float, float]


def _sigmoid_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _sigmoid_inverse(s: Tensor) -> Tensor:
    """σ' = s where e^t = (1 + √(1 − 4s))² / 4s."""
    root = (1.0 - 4.0 * s).clamp(min=0.0).sqrt()
    return 2.0 * torch.log1p(root) - (4.0 * s).log()


def _tanh_slope(x: Tensor) -> Tensor:
    return 4.0 * _sigmoid_slope(2.0 * x)


SIGMOID = SinglePeak(_sigmoid_slope, _sigmoid_inverse)
TANH = SinglePeak(_tanh_slope, lambda s: 0.5 * _sigmoid_inverse(s * 0.25))

sigmoid = elementwise(
    "sigmoid",
    torch.sigmoid,
    curve=SIGMOID,
    rounding=Rounding(ulps=8),
    sample=uniform(-12.0, 12.0),
    summary="1 / (1 + exp(−x))",
)
spell("sigmoid", "expit")

tanh = elementwise(
    "tanh",
    torch.tanh,
    curve=TANH,
    rounding=Rounding(ulps=8),
    sample=uniform(-8.0, 8.0),
    summary="hyperbolic tangent",
)
spell("tanh")

elementwise(
    "tanhshrink",
    lambda x: F.tanhshrink(x),
    curve=SinglePeak(
        lambda x: x.tanh().square(),
        lambda s: torch.atanh(s.clamp(min=0.0).sqrt()),
        valley=True,
    ),
    magnitude=lambda x: x,
    rounding=Rounding(ulps=1, terms=lambda *_, **__: 8),
    sample=uniform(),
    summary="x − tanh(x)",
)
spell("tanhshrink")

elementwise(
    "softsign",
    lambda x: F.softsign(x),
    curve=SinglePeak(lambda x: (1.0 + x.abs()).pow(-2), lambda s: s.rsqrt() - 1.0),
    rounding=Rounding(ulps=3),
    sample=uniform(),
    summary="x / (1 + |x|)",
)
spell("softsign")

elementwise(
    "logsigmoid",
    lambda x: F.logsigmoid(x),
    curve=Convex(lambda x: torch.sigmoid(-x), lambda s: ((1.0 - s) / s).log(), concave=True),
    magnitude=torch.ones_like,
    rounding=Rounding(ulps=8),
    sample=uniform(-8.0, 8.0),
    summary="log(σ(x))",
)
spell("logsigmoid", "log_sigmoid")


def _softplus(x: Tensor, *, beta: float, threshold: float) -> Tensor:
    return F.softplus(x, beta, threshold)


def _softplus_interval(x: Interval, *, beta: float, threshold: float) -> Interval:
    """Beyond the threshold torch gives x, which is less than what it gives just before."""
    point = threshold / beta
    jump = Turn(point, point, point + math.log1p(math.exp(-threshold)) / beta)
    return between(lambda points: F.softplus(points, beta, threshold), (jump,))(x)


class _Softplus:
    """log(1 + e^{βx})/β, off by at most log(1 + e^{−threshold})/β where torch leaves it out."""

    def __init__(self, beta: float, threshold: float) -> None:
        self._jump = math.log1p(math.exp(-threshold)) / beta
        self._point = threshold / beta
        self._curve = Convex(
            lambda x: torch.sigmoid(beta * x), lambda s: (s / (1.0 - s)).log() / beta
        )

    def _missing(self, x: Interval) -> Tensor:
        return torch.where(x.upper >= self._point, self._jump, 0.0)

    def parallel(self, f: Scalar, x: Interval) -> Parallel:
        band = self._curve.parallel(f, x)
        missing = self._missing(x)
        return Parallel(band.slope, band.middle, band.half_gap + missing)

    def lines(self, f: Scalar, x: Interval) -> Any:
        lines = self._curve.lines(f, x)
        missing = self._missing(x)
        return type(lines)(
            lines.lower_slope,
            lines.lower_offset - missing,
            lines.upper_slope,
            lines.upper_offset + missing,
        )


def _softplus_curve(*, beta: float, threshold: float) -> Curve:
    return _Softplus(beta, threshold)


elementwise(
    "softplus",
    _softplus,
    interval=_softplus_interval,
    curve=_softplus_curve,
    rounding=Rounding(ulps=8),
    sample=uniform(-6.0, 30.0, beta=(1.0, 2.5), threshold=(20.0, 10.0)),
    summary="log(1 + exp(βx)) / β",
)


@lowers(F.softplus, aten.softplus.default)
def _(b: Lowering, input: Value, beta: float = 1, threshold: float = 20) -> Value:
    if beta <= 0:
        return b.reject("softplus with beta <= 0 has no bound rule")
    return b.emit("softplus", input, beta=float(beta), threshold=float(threshold))


def _elu(x: Tensor, *, alpha: float) -> Tensor:
    return F.elu(x, alpha)


def _elu_interval(x: Interval, *, alpha: float) -> Interval:
    return between(lambda points: F.elu(points, alpha), (Turn(0.0, 0.0, 0.0),))(x)


def _exp_below(scale: float, rate: float) -> Any:
    """Slope of a function that is exponential below 0 and linear above."""
    return lambda x: torch.where(x > 0, 1.0, scale * (rate * x.clamp(max=0.0)).exp())


def _elu_curve(*, alpha: float) -> Curve:
    slope = _exp_below(alpha, 1.0)
    if 0.0 < alpha <= 1.0:
        return Convex(slope, lambda s: (s / alpha).log().clamp(max=0.0))
    return Fallback(between(slope, (Turn(0.0, min(alpha, 1.0), max(alpha, 1.0)),)))


elementwise(
    "elu",
    _elu,
    interval=_elu_interval,
    curve=_elu_curve,
    magnitude=lambda x, *, alpha: torch.full_like(x, abs(alpha)),
    rounding=Rounding(ulps=8, terms=lambda *_, **__: 4),
    sample=uniform(alpha=(1.0, 0.5, 1.7)),
    summary="x above 0, α(eˣ − 1) below",
)


@lowers(F.elu, F.elu_)
def _(b: Lowering, input: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    return b.emit("elu", input, alpha=float(alpha))


@lowers(aten.elu.default)
def _(
    b: Lowering, input: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1
) -> Value:
    if input_scale != 1:
        return b.reject("elu with input_scale has no bound rule")
    result = b.emit("elu", input, alpha=float(alpha))
    return result if scale == 1 else b.emit("mul_scalar", result, other=scale)


def _celu_curve(*, alpha: float) -> Curve:
    return Convex(_exp_below(1.0, 1.0 / alpha), lambda s: alpha * s.log().clamp(max=0.0))


elementwise(
    "celu",
    lambda x, *, alpha: F.celu(x, alpha),
    curve=_celu_curve,
    magnitude=lambda x, *, alpha: torch.full_like(x, alpha),
    rounding=Rounding(ulps=8, terms=lambda *_, **__: 8),
    sample=uniform(alpha=(1.0, 0.5, 1.7)),
    summary="x above 0, α(exp(x/α) − 1) below",
)


@lowers(F.celu, torch.celu, aten.celu.default)
def _(b: Lowering, input: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    if alpha <= 0:
        return b.reject("celu with alpha <= 0 has no bound rule")
    return b.emit("celu", input, alpha=float(alpha))


_SCALE, _ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
_BEND = Turn(0.0, 1.0, _ALPHA)

elementwise(
    "selu",
    lambda x: F.selu(x),
    curve=Fallback(
        between(
            lambda x: _SCALE * _exp_below(_ALPHA, 1.0)(x),
            (Turn(0.0, _SCALE * _BEND.low, _SCALE * _BEND.high),),
        )
    ),
    magnitude=lambda x: torch.full_like(x, 2.0),
    rounding=Rounding(ulps=8, terms=lambda *_, **__: 4),
    sample=uniform(),
    summary="scaled elu with fixed constants",
)


@lowers(F.selu, torch.selu, aten.selu.default)
def _(b: Lowering, input: Value, inplace: bool = False) -> Value:
    return b.emit("selu", input)


def _silu_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * (1.0 + x * torch.sigmoid(-x))


def _mish_slope(x: Tensor) -> Tensor:
    inner = F.softplus(x).tanh()
    return inner + x * torch.sigmoid(x) * (1.0 - inner.square())


def _normal_slope(x: Tensor) -> Tensor:
    """Φ(x) + x·φ(x)."""
    below = 0.5 * torch.erfc(-x * math.sqrt(0.5))
    return below + x * (-0.5 * x.square()).exp() * (0.5 * math.sqrt(2.0 / math.pi))


_C, _K = math.sqrt(2.0 / math.pi), 0.044715


def _tanh_gelu_slope(x: Tensor) -> Tensor:
    # Beyond 20 the slope is 0 or 1 in any precision, and its terms would be inf·0.
    x = x.clamp(-20.0, 20.0)
    inner = _C * (x + _K * x**3)
    rise = _C * (1.0 + 3.0 * _K * x.square())
    return torch.sigmoid(2.0 * inner) + 0.5 * x * rise * _tanh_slope(inner)


def _dip(name: str, fn: Any, slope: Any, ulps: int, lowest: float, bends: Bends) -> Any:
    """An activation that falls to one minimum and then rises.

    Args:
        lowest: near where it is least.
        bends: near where its slope is least, and greatest.
    """
    bottom = turn_of(fn, lowest - 0.5, lowest + 0.5, -1.0)
    steep = [
        turn_of(slope, c - 0.7, c + 0.7, sign) for c, sign in zip(bends, (-1.0, 1.0), strict=True)
    ]
    return elementwise(
        name,
        lambda x: fn(x),
        interval=between(fn, (bottom,)),
        curve=Fallback(between(slope, steep)),
        magnitude=lambda x: x,
        rounding=Rounding(ulps=ulps, terms=lambda *_, **__: 8),
        sample=uniform(-6.0, 6.0),
        summary={
            "silu": "x·σ(x)",
            "mish": "x·tanh(softplus(x))",
            "gelu": "x·Φ(x)",
            "gelu_tanh": "gelu with the tanh approximation of Φ",
        }[name],
    )


_dip("silu", F.silu, _silu_slope, 8, -1.278, (-2.399, 2.399))
_dip("mish", F.mish, _mish_slope, 16, -1.192, (-2.256, 1.491))
_dip("gelu", F.gelu, _normal_slope, 8, -0.752, (-1.414, 1.414))
_dip(
    "gelu_tanh",
    lambda x: F.gelu(x, approximate="tanh"),
    _tanh_gelu_slope,
    8,
    -0.752,
    (-1.414, 1.414),
)


def _inplace(op: str) -> Any:
    def lower(b: Lowering, input: Value, inplace: bool = False) -> Value:
        return b.emit(op, input)

    return lower


lowers(F.silu, aten.silu.default)(_inplace("silu"))
lowers(F.mish, aten.mish.default)(_inplace("mish"))


@lowers(F.gelu, aten.gelu.default)
def _(b: Lowering, input: Value, approximate: str = "none") -> Value:
    return b.emit("gelu" if approximate == "none" else "gelu_tanh", input)


@lowers(F.glu, aten.glu.default)
def _(b: Lowering, input: Value, dim: int = -1) -> Value:
    at = b.dim(input, dim)
    half = b.shape(input)[at] // 2  # type: ignore[operator]
    parts = [
        b.emit("slice", input, dim=at, start=start, stop=start + half, step=1)
        for start in (0, half)
    ]
    return b.emit("mul", parts[0], b.emit("sigmoid", parts[1]))
