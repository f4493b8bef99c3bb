"""What the sound rule of a node must know at compile time: how many terms its sums have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from boundgraph.ir.program import Node, Value
from boundgraph.ir.types import Dim, evaluate_shape
from boundgraph.ops._infer import PROBES, evaluate, meta_tensor
from boundgraph.ops._sound import PRECISION, TERMS
from boundgraph.ops._spec import Kind, OpSpec, broadcast_batch, keep_batch


def attributes(spec: OpSpec, operands: Sequence[Value], node: Node) -> dict[str, Any]:
    """What the sound rule of a node is told: terms per output element and the precision."""
    return {
        TERMS: _terms(spec, operands, node.attrs),
        PRECISION: _precision([*operands, node.result]),
    }


def backward_attributes(
    spec: OpSpec, operands: Sequence[Value], bounded: Sequence[int], node: Node, batch: int | None
) -> dict[str, Any]:
    """What the sound backward rule of a node is told.

    Args:
        spec, operands, node: the op, its operands and the concrete node.
        bounded: positions of the bounded operands.
        batch: where samples are separated in the result.
    """
    shape = node.result.type.shape
    elements = math.prod(e for i, e in enumerate(shape) if i != batch and isinstance(e, int))
    others = any(v.type.is_float for i, v in enumerate(operands) if i not in bounded)
    if spec.kind is Kind.STRUCTURAL and not others and _moves(spec, operands, node.attrs):
        terms, moves = 0, True
    else:
        terms, moves = _transposed(spec, operands, node, elements), False
        if others and spec.boundable != (0,):
            # The constant operands become offset, a sum over the sample.
            terms = max(terms, elements + 16)
    return {
        "bounded": tuple(bounded),
        "moves": moves,
        TERMS: terms,
        "elements": elements,
        PRECISION: _precision([*operands, node.result]),
    }


def _transposed(spec: OpSpec, operands: Sequence[Value], node: Node, elements: int) -> int:
    """Roundings in a coefficient of the transpose."""
    rounding = spec.rounding
    own = math.ceil(rounding.ulps) + 4
    if rounding.scales:
        own += _terms(spec, operands, node.attrs)
    if spec.batch in (keep_batch, broadcast_batch):
        return own + 1
    if rounding.transposed is None:
        return own + 2 * elements + 8
    sizes = dict.fromkeys(_symbols(operands, node.attrs), PROBES[0])
    parts = [meta_tensor(value.type, sizes) for value in operands]
    resolved = {key: evaluate(value, sizes) for key, value in node.attrs.items()}
    return own + rounding.transposed(*parts, **resolved)


def _moves(spec: OpSpec, operands: Sequence[Value], attrs: Mapping[str, Any]) -> bool:
    """Whether the op takes each element to one place at most: try it on the elements' numbers."""
    if not all(value.type.is_float for value in operands):
        return False
    sizes = dict.fromkeys(_symbols(operands, attrs), 2)
    ids, start = [], 0
    for value in operands:
        shape = evaluate_shape(value.type.shape, sizes)
        count = math.prod(shape)
        ids.append(torch.arange(start, start + count, dtype=torch.float64).reshape(shape))
        start += count
    resolved = {key: evaluate(value, sizes) for key, value in attrs.items()}
    moved = spec.concrete(*ids, **resolved).reshape(-1)
    return moved.numel() == moved.unique().numel()


def _symbols(operands: Sequence[Value], attrs: Mapping[str, Any]) -> set[str]:
    return {
        entry.symbol
        for shape in (*(value.type.shape for value in operands), *attrs.values())
        if isinstance(shape, tuple)
        for entry in shape
        if isinstance(entry, Dim)
    }


def precision_of(dtype: str) -> str:
    """The name of the constants of a dtype."""
    return "f64" if dtype == "f64" else "f32"


def _precision(values: Sequence[Value]) -> str:
    dtypes = {value.type.dtype for value in values if value.type.is_float}
    # The coarsest one rounds; half precision has no entry and is refused.
    return "f64" if dtypes == {"f64"} else "f32"


def _terms(spec: OpSpec, operands: Sequence[Value], attrs: Mapping[str, Any]) -> int:
    """Declared terms and ulps; the larger one where it depends on a dynamic size."""
    rounding = spec.rounding
    if rounding.terms is None:
        return math.ceil(rounding.ulps)
    symbols = _symbols(operands, attrs)
    counts = set()
    for probe in PROBES[:2]:
        sizes = dict.fromkeys(symbols, probe)
        parts = [meta_tensor(value.type, sizes) for value in operands]
        resolved = {key: evaluate(value, sizes) for key, value in attrs.items()}
        counts.add(math.ceil(rounding.terms(*parts, **resolved) + rounding.ulps))
    if len(counts) > 1:
        raise ValueError("the number of terms depends on the batch size")
    return counts.pop()
