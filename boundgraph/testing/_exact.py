"""Evaluate a program in exact rational arithmetic: the reference for rounding-sound bounds.

Values are numpy arrays of `fractions.Fraction`. Rational ops are exact; for others mpmath
computes to 300 bits, which is as good as exact beside a bound of 24 or 53 bits.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boundgraph import ops
from boundgraph.errors import UnsupportedError
from boundgraph.ir.program import Node, Program
from boundgraph.ops import Kind, OpSpec
from boundgraph.runtime.interpret import DimSizes

Array = Any
BITS = 300
# Affine ops whose every coefficient is a parameter, an integer or a Python number: the op on
# a unit vector in float64 gives the coefficient itself.
_COEFFICIENTS = ("linear", "batched_linear", "sum", "neg", "pad", "mul_scalar", "add_scalar")
_AVERAGES = ("mean", "avg_pool", "adaptive_avg_pool")


def fractions(tensor: Tensor) -> Array:
    """The numbers in a tensor, exactly."""
    wide = tensor.detach().double()
    flat = [Fraction(value) for value in wide.reshape(-1).tolist()]
    out = np.empty(len(flat), dtype=object)
    out[:] = flat
    return out.reshape(tuple(tensor.shape))


def _mpmath() -> Any:
    # Comes with torch (through sympy); only this reference needs it.
    mpmath: Any = importlib.import_module("mpmath")
    mpmath.mp.prec = BITS
    return mpmath


def _big(value: Fraction) -> Any:
    mp = _mpmath()
    return mp.mpf(value.numerator) / mp.mpf(value.denominator)


def _fraction(value: Any) -> Fraction:
    sign, mantissa, exponent, _ = value._mpf_
    found = Fraction(int(mantissa)) * Fraction(2) ** int(exponent)
    return -found if sign else found


def _by_mpmath(name: str) -> Callable[[Fraction], Fraction]:
    def run(x: Fraction) -> Fraction:
        mp, big = _mpmath(), _big(x)
        table: dict[str, Callable[[], Any]] = {
            "sigmoid": lambda: 1 / (1 + mp.exp(-big)),
            "tanh": lambda: mp.tanh(big),
            "exp": lambda: mp.exp(big),
            "softplus": lambda: mp.log1p(mp.exp(big)),
            "silu": lambda: big / (1 + mp.exp(-big)),
            "erf": lambda: mp.erf(big),
            "sin": lambda: mp.sin(big),
            "cos": lambda: mp.cos(big),
            "atan": lambda: mp.atan(big),
            "log": lambda: mp.log(big),
            "log1p": lambda: mp.log1p(big),
            "expm1": lambda: mp.expm1(big),
            "exp2": lambda: mp.mpf(2) ** big,
            "sqrt": lambda: mp.sqrt(big),
            "rsqrt": lambda: 1 / mp.sqrt(big),
            "sinh": lambda: mp.sinh(big),
            "cosh": lambda: mp.cosh(big),
            "asinh": lambda: mp.asinh(big),
            "mish": lambda: big * mp.tanh(mp.log1p(mp.exp(big))),
            "tan": lambda: mp.tan(big),
            "log2": lambda: mp.log(big) / mp.log(2),
            "log10": lambda: mp.log10(big),
            "asin": lambda: mp.asin(big),
            "acos": lambda: mp.acos(big),
            "acosh": lambda: mp.acosh(big),
            "atanh": lambda: mp.atanh(big),
            "erfinv": lambda: mp.erfinv(big),
            "logit": lambda: mp.log(big / (1 - big)),
            "gelu": lambda: big * mp.ncdf(big),
        }
        return _fraction(table[name]())

    return run


_RATIONAL: dict[str, Callable[..., Fraction]] = {
    "relu": lambda x: max(x, Fraction(0)),
    "leaky_relu": lambda x, *, negative_slope: x if x >= 0 else x * Fraction(negative_slope),
    "reciprocal": lambda x: 1 / x,
    "abs": abs,
    "square": lambda x: x * x,
    "relu6": lambda x: min(max(x, Fraction(0)), Fraction(6)),
}
_REAL = (
    "sigmoid", "tanh", "exp", "softplus", "silu", "erf", "sin", "cos", "atan", "log", "log1p",
    "expm1", "exp2", "sqrt", "rsqrt", "sinh", "cosh", "asinh", "mish", "tan", "log2", "log10",
    "asin", "acos", "acosh", "atanh", "erfinv", "logit", "gelu",
)  # fmt: skip


class ExactProgram:
    """A concrete program evaluated in rationals.

    Args:
        program: as captured, before any pass.
        lookup: parameter path to tensor.

    Raises:
        UnsupportedError: an op that has no exact reference here.
    """

    def __init__(self, program: Program, lookup: Callable[[str], Tensor]) -> None:
        self.program = program
        self._params = {str(p): lookup(p.name).detach() for p in program.params}
        self._maps: dict[str, Any] = {}

    def __call__(self, *inputs: Any) -> tuple[Array, ...]:
        """Values of the outputs.

        Args:
            inputs: per program input a tensor, or an array of fractions.
        """
        values: dict[str, Any] = dict(self._params)
        shapes: dict[str, Any] = dict(self._params)
        for value, given in zip(self.program.inputs, inputs, strict=True):
            values[str(value)] = given
            shapes[str(value)] = (
                torch.empty(given.shape, device="meta") if isinstance(given, np.ndarray) else given
            )
        sizes = DimSizes(self.program, shapes)
        for node in self.program.nodes:
            attrs = {key: sizes.resolve(value) for key, value in node.attrs.items()}
            operands = [values[str(value)] for value in node.inputs]
            values[str(node.result)] = self._node(node, operands, attrs)
        return tuple(_exact(values[str(output)]) for output in self.program.outputs)

    def _node(self, node: Node, operands: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
        spec = ops.get(node.op)
        assert spec is not None
        if all(isinstance(v, Tensor) and not v.is_floating_point() for v in operands):
            return spec.concrete(*operands, **attrs)
        values = [
            v if isinstance(v, Tensor) and not v.is_floating_point() else _exact(v)
            for v in operands
        ]
        if node.op in _DIRECT:
            return _DIRECT[node.op](*values, **attrs)
        if node.op in _RATIONAL or node.op in _REAL:
            fn = _RATIONAL.get(node.op) or _by_mpmath(node.op)
            return _each(lambda x: fn(x, **attrs), values[0])
        if spec.kind is Kind.STRUCTURAL:
            return _moved(spec, values, attrs)
        if spec.kind is Kind.SELECTION:
            return _selected(spec, values, attrs)
        averages = node.op.startswith(_AVERAGES)
        if node.op in _COEFFICIENTS or node.op.startswith("conv") or averages:
            return self._affine(str(node.result), spec, values[0], operands[1:], attrs, averages)
        raise UnsupportedError(f"no exact reference for op {node.op!r}")

    def _affine(
        self,
        key: str,
        spec: OpSpec,
        x: Array,
        rest: Sequence[Tensor],
        attrs: Mapping[str, Any],
        averages: bool,
    ) -> Array:
        known = self._maps.get(key)
        if known is None or known[2] != x.shape:
            known = self._maps[key] = _coefficients(spec, x.shape, rest, attrs, averages)
        rows, offset, _, out_shape = known
        flat = x.reshape(-1)
        out = np.empty(len(rows), dtype=object)
        for i, row in enumerate(rows):
            out[i] = offset[i] + sum((w * flat[j] for j, w in row), Fraction(0))
        return out.reshape(out_shape)


def _coefficients(
    spec: OpSpec,
    shape: tuple[int, ...],
    rest: Sequence[Any],
    attrs: Mapping[str, Any],
    averages: bool,
) -> Any:
    """Sparse rows and offsets of an affine op, from its values at 0 and at unit vectors."""
    wide = [v.double() if v.is_floating_point() else v for v in rest]
    count = math.prod(shape)
    zero = spec.concrete(torch.zeros(shape, dtype=torch.float64), *wide, **attrs)
    bare = [torch.zeros_like(v) if i else v for i, v in enumerate(wide)]
    bare_attrs = dict(attrs)
    if spec.name == "pad":
        bare_attrs["value"] = 0.0
    rows: list[list[tuple[int, Fraction]]] = [[] for _ in range(zero.numel())]
    for j in range(count):
        unit = torch.zeros(count, dtype=torch.float64)
        unit[j] = 1.0
        if spec.name == "add_scalar":
            column = unit
        else:
            column = spec.concrete(unit.reshape(shape), *bare, **bare_attrs).reshape(-1)
        for i in column.nonzero()[:, 0].tolist():
            entry = float(column[i])
            rows[i].append((j, Fraction(1, round(1 / entry)) if averages else Fraction(entry)))
    return rows, fractions(zero).reshape(-1), shape, tuple(zero.shape)


def _exact(value: Any) -> Array:
    return value if isinstance(value, np.ndarray) else fractions(value)


def _each(fn: Callable[[Fraction], Fraction], x: Array) -> Array:
    out = np.empty(x.size, dtype=object)
    out[:] = [fn(value) for value in x.reshape(-1)]
    return out.reshape(x.shape)


def _moved(spec: OpSpec, values: Sequence[Any], attrs: Mapping[str, Any]) -> Array:
    """Move numbers of the elements instead of the elements."""
    pool: list[Fraction] = [Fraction(0)]
    ids = []
    for value in values:
        if not isinstance(value, np.ndarray):
            ids.append(value)
            continue
        start = len(pool)
        pool += list(value.reshape(-1))
        ids.append(torch.arange(start, len(pool), dtype=torch.float64).reshape(value.shape))
    moved = spec.concrete(*ids, **attrs)
    out = np.empty(moved.numel(), dtype=object)
    out[:] = [pool[int(i)] for i in moved.reshape(-1).tolist()]
    return out.reshape(tuple(moved.shape))


def _selected(spec: OpSpec, values: Sequence[Any], attrs: Mapping[str, Any]) -> Array:
    """Select by rank among all elements, which has the order of the elements."""
    every = sorted({v for value in values if isinstance(value, np.ndarray) for v in value.flat})
    rank = {value: index for index, value in enumerate(every)}
    ranks = [
        torch.tensor([float(rank[v]) for v in value.flat], dtype=torch.float64).reshape(value.shape)
        if isinstance(value, np.ndarray)
        else value
        for value in values
    ]
    found = spec.concrete(*ranks, **attrs)
    out = np.empty(found.numel(), dtype=object)
    out[:] = [every[int(i)] for i in found.reshape(-1).tolist()]
    return out.reshape(tuple(found.shape))


def _margin(logits: Array, labels: Tensor, *, classes: int) -> Array:
    own = np.array([logits[i, y] for i, y in enumerate(labels.tolist())], dtype=object)
    return own[:, None] - logits


def _batch_norm(
    x: Array, mean: Array, var: Array, weight: Any = None, bias: Any = None, *, eps: float
) -> Array:
    shape = (-1,) + (1,) * (x.ndim - 2)
    scale = _each(lambda v: _by_mpmath("rsqrt")(v + Fraction(eps)), var)
    scale = scale if weight is None else scale * weight
    out = (x - mean.reshape(shape)) * scale.reshape(shape)
    return out if bias is None else out + bias.reshape(shape)


def _softmax(x: Array, *, dim: int) -> Array:
    powers = _each(_by_mpmath("exp"), x)
    return powers / powers.sum(axis=dim, keepdims=True)


def _log_softmax(x: Array, *, dim: int) -> Array:
    return _each(_by_mpmath("log"), _softmax(x, dim=dim))


def _sum_exp(x: Array, *, dims: tuple[int, ...], keepdim: bool) -> Array:
    return _each(_by_mpmath("log"), _each(_by_mpmath("exp"), x).sum(axis=dims, keepdims=keepdim))


def _mean(x: Array, dims: tuple[int, ...]) -> Array:
    count = math.prod(x.shape[dim] for dim in dims)
    return x.sum(axis=dims, keepdims=True) / Fraction(count)


def _scale_to_unit(
    x: Array, *, dims: tuple[int, ...], count: int, eps: float, floor: float, centered: bool
) -> Array:
    size = _each(_by_mpmath("sqrt"), _mean(x * x, dims) + Fraction(eps))
    return x / _each(lambda value: max(value, Fraction(floor)), size)


def _vector_norm(x: Array, *, p: float, dims: tuple[int, ...], count: int, keepdim: bool) -> Array:
    size = _each(abs, x)
    if p == math.inf:
        return size.max(axis=dims, keepdims=keepdim)
    root = _big_power(1.0 / p) if p not in (1.0, 2.0) else _by_mpmath("sqrt")
    total = (size ** int(p) if p.is_integer() else _each(_big_power(p), size)).sum(
        axis=dims, keepdims=keepdim
    )
    return total if p == 1.0 else _each(root, total)


def _big_power(exponent: float) -> Callable[[Fraction], Fraction]:
    return lambda x: _fraction(_mpmath().power(_big(x), _mpmath().mpf(exponent)))


_DIRECT: dict[str, Callable[..., Array]] = {
    "center": lambda x, *, dims, count: x - _mean(x, dims),
    "scale_to_unit": _scale_to_unit,
    "vector_norm": _vector_norm,
    "pow": lambda x, *, exponent: _each(_big_power(exponent), x),
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "matmul": lambda a, b: np.matmul(a, b),
    "div_scalar": lambda x, *, other: x / Fraction(other),
    "margin": _margin,
    "batch_norm": _batch_norm,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "logsumexp": _sum_exp,
    "linear_margin": lambda x, w, b, labels, *, classes, pairwise: _margin(
        np.dot(x, w.T) + b, labels, classes=classes
    ),
    "cast": lambda x, *, dtype: x,
}


def outside(value: Array, lower: Tensor, upper: Tensor) -> list[tuple[int, Fraction, float, float]]:
    """Elements of an exact value that are not between two tensors; NaN encloses nothing."""
    found = []
    ends = zip(
        value.reshape(-1), lower.reshape(-1).tolist(), upper.reshape(-1).tolist(), strict=True
    )
    for index, (exact, low, high) in enumerate(ends):
        inside = low <= high
        inside = inside and (low == -math.inf or (low < math.inf and Fraction(low) <= exact))
        inside = inside and (high == math.inf or (high > -math.inf and exact <= Fraction(high)))
        if not inside:
            found.append((index, exact, low, high))
    return found
