"""What rounding may do to a bound, derived from the rounding that ops declare."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from boundgraph import ops
from boundgraph.domains.interval import Interval
from boundgraph.ir.program import Node, Program
from boundgraph.ops import Kind, OpSpec
from boundgraph.runtime.interpret import DimSizes, run_node

# Conversions between ends and centre/radius, and the last sum, beside an op's own terms.
CONVERSIONS = 4


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number of a floating-point dtype."""
    return float(torch.finfo(dtype).eps) / 2


def gamma(terms: int, dtype: torch.dtype) -> float:
    """γ(n) = n·u / (1 − n·u): relative error of n roundings (Higham 2002, lemma 3.1)."""
    product = terms * unit_roundoff(dtype)
    return product / (1.0 - product)


def largest(value: Interval | Tensor) -> Tensor:
    """Largest absolute value in an interval, element by element.

    What is −∞ exactly, as a mask makes it, is rounded by nothing and counts as 0.
    """
    if isinstance(value, Interval):
        size = torch.maximum(value.lower.abs(), value.upper.abs())
        return torch.where(value.upper == -math.inf, 0.0, size)
    return torch.where(value == -math.inf, 0.0, value.abs())


def allowance(
    spec: OpSpec,
    operands: Sequence[Interval | Tensor],
    attrs: Mapping[str, Any],
    result: Interval,
    dtype: torch.dtype | None = None,
    conversions: int = CONVERSIONS,
) -> Tensor:
    """How far rounding may put an end of `result` from the end of exact arithmetic.

    Derived from `spec.rounding` for the interval rule and the op itself: twice the ulps,
    γ of the declared terms and of the conversions, and one underflow per term. Zero for
    ops that only move or select elements.

    Args:
        spec: the op.
        operands: what its interval rule was given.
        attrs: its attributes.
        result: what the rule gave.
        dtype: whose rounding is meant; by default the least precise one of the values.
        conversions: how many roundings of the operands are meant, too.
    """
    dtype, rounding = dtype or _coarsest((result, *operands)), spec.rounding
    if _moves_only(spec):
        return torch.zeros_like(result.lower)
    u, tiny = unit_roundoff(dtype), float(torch.finfo(dtype).tiny)
    allowed = (2.0 * rounding.ulps + 2.0) * u * largest(result)
    parts = [operand.any_part if isinstance(operand, Interval) else operand for operand in operands]
    own = rounding.terms(*parts, **attrs) if rounding.terms else 0
    terms = conversions + own
    size = torch.ones((), dtype=dtype)
    if spec.magnitude is not None:
        sizes = [
            largest(operand)
            if isinstance(operand, Interval) or operand.is_floating_point()
            else operand
            for operand in operands
        ]
        weight = spec.magnitude(*sizes, **attrs) + _offset(spec, operands, attrs)
        if rounding.relative:
            allowed = allowed + 2.0 * gamma(own, dtype) * largest(result)
        scaled = conversions if rounding.relative else terms
        allowed = allowed + gamma(scaled, dtype) * weight
        ones = [torch.ones_like(part) if i == 0 else part for i, part in enumerate(sizes)]
        size = 1.0 + spec.magnitude(*ones, **attrs).abs()
    return allowed + terms * tiny * size


def _moves_only(spec: OpSpec) -> bool:
    """Whether an op rounds nothing, because it moves or selects elements."""
    exact = spec.rounding.ulps == 0 and spec.rounding.terms is None
    return exact and spec.kind in (Kind.STRUCTURAL, Kind.SELECTION, Kind.ELEMENTWISE)


def _coarsest(values: Sequence[Interval | Tensor]) -> torch.dtype:
    """The least precise floating-point dtype among values: a cast rounds in either."""
    parts = [value.any_part if isinstance(value, Interval) else value for value in values]
    dtypes = [part.dtype for part in parts if part.is_floating_point()]
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def _offset(spec: OpSpec, operands: Sequence[Interval | Tensor], attrs: Mapping[str, Any]) -> Any:
    """Size of what an affine op adds; `magnitude` covers the linear part only."""
    if spec.kind is not Kind.AFFINE or spec.boundable != (0,):
        return 0.0
    first, *rest = operands
    zero = torch.zeros_like(first.any_part if isinstance(first, Interval) else first)
    if spec.rounding.offset is not None:
        found = spec.rounding.offset(zero, *rest, **attrs)
        return 0.0 if found is None else found
    return spec.concrete(zero, *rest, **attrs).abs()


def excess(inner: Tensor | Interval, outer: Interval, allowed: Tensor | float = 0.0) -> Tensor:
    """By how much `inner` leaves `outer` beyond `allowed`, element by element; 0 where it does not.

    NaN anywhere in the bounds counts as an infinite excess: nothing is enclosed.
    """
    lower, upper = (inner.lower, inner.upper) if isinstance(inner, Interval) else (inner, inner)
    wide = torch.promote_types(lower.dtype, outer.lower.dtype)
    below = outer.lower.to(wide) - lower.to(wide) - allowed
    above = upper.to(wide) - outer.upper.to(wide) - allowed
    # Infinite ends enclose; inf − inf would be NaN.
    below = torch.where((outer.lower == -math.inf) | (outer.lower == lower), 0.0, below)
    above = torch.where((outer.upper == math.inf) | (outer.upper == upper), 0.0, above)
    worst = torch.maximum(below, above).clamp(min=0.0)
    return torch.where(torch.isnan(worst), math.inf, worst)


def interpret_with_allowance(
    program: Program, inputs: Sequence[Interval | Tensor], lookup: Callable[[str], Any]
) -> tuple[tuple[Interval | Tensor, ...], tuple[Any, ...]]:
    """Run an interval program, and again with all intervals widened by declared rounding.

    The second run is in float64 with the roundings of the program's own dtypes, so that it
    stays finite where values come near the largest number of those.

    Args:
        program: a bounded program of the `ibp` method.
        inputs: one per program input.
        lookup: parameter path to tensor.

    Returns:
        The outputs, and for each output how far rounding may have moved its ends: the
        accumulated, propagated allowance of all ops.
    """
    plain: dict[str, Any] = {str(v): given for v, given in zip(program.inputs, inputs, strict=True)}
    wide: dict[str, Any] = {
        name: _converted(_double(value), value.lower.dtype)
        for name, value in plain.items()
        if isinstance(value, Interval)
    }
    plain.update((str(param), lookup(param.name)) for param in program.params)
    sizes = DimSizes(program, plain)
    for node in program.nodes:
        plain[str(node.result)] = run_node(node, plain, sizes)
        wide[str(node.result)] = _widened(node, plain, wide, sizes)
    outputs = tuple(plain[str(value)] for value in program.outputs)
    moved = tuple(
        _distance(out, wide[str(v)]) if isinstance(out, Interval) else torch.zeros_like(out)
        for v, out in zip(program.outputs, outputs, strict=True)
    )
    return outputs, moved


def _distance(inner: Interval, outer: Interval) -> Tensor:
    """How far the ends lie apart; equal infinite ends do not, and NaN may be anywhere."""
    below = torch.where(inner.lower == outer.lower, 0.0, inner.lower - outer.lower)
    above = torch.where(inner.upper == outer.upper, 0.0, outer.upper - inner.upper)
    apart = torch.maximum(below, above).clamp(min=0.0).nan_to_num(math.inf, math.inf)
    return apart.to(inner.lower.dtype)


def _converted(value: Any, dtype: torch.dtype) -> Any:
    """An interval as it may come back from a conversion to centre and radius, and back."""
    if not isinstance(value, Interval):
        return value
    moved = gamma(CONVERSIONS, dtype) * largest(value)
    return Interval(value.lower - moved, value.upper + moved)


def _double(value: Any) -> Any:
    if isinstance(value, Interval):
        return Interval(value.lower.double(), value.upper.double())
    return value.double() if value.is_floating_point() else value


def _widened(node: Node, plain: Mapping[str, Any], wide: Mapping[str, Any], sizes: DimSizes) -> Any:
    """A node's result in float64, from widened operands, widened by the rounding of the op."""
    result, names = plain[str(node.result)], [str(value) for value in node.inputs]
    if not isinstance(result, Interval):
        return result
    # Parameters are converted where they are read, so that no second copy of them is kept.
    operands = {name: _double(wide.get(name, plain[name])) for name in names}
    spec = ops.get(node.op.removeprefix("interval."))
    dtype = _coarsest([result, *(plain[name] for name in names)])
    if spec is not None and not _moves_only(spec):
        # In the operands, where a result that is bounded whatever they are stays so.
        operands = {name: _converted(value, dtype) for name, value in operands.items()}
    found = _double(run_node(node, operands, sizes))
    if spec is None:
        return found
    attrs = {key: sizes.resolve(value) for key, value in node.attrs.items()}
    given = [operands[name] for name in names]
    allowed = allowance(spec, given, attrs, found, dtype, conversions=0)
    return Interval(found.lower - allowed, found.upper + allowed)
