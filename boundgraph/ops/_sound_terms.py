"""What the sound rule of a node must know at compile time: how many terms its sums have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from boundgraph.ir.program import Node, Value
from boundgraph.ir.types import Dim, evaluate_shape
from boundgraph.ops._infer import PROBES, evaluate, meta_tensor
from boundgraph.ops._sound import FULL, PARTS, PRECISION, STEP, TERMS, WIDE, exact
from boundgraph.ops._spec import Kind, OpSpec, broadcast_batch, keep_batch
from boundgraph.ops.linear import in_blocks

# Sums shorter than this are taken in the dtype of the program: float64 would gain nothing.
_LONG = 8
# Sums of products with parameters: no number is written in the op that float64 would read
# differently.
_PRODUCTS = (
    "linear", "linear_margin", "batched_linear", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
)  # fmt: skip


def attributes(
    spec: OpSpec,
    operands: Sequence[Value],
    node: Node,
    *,
    executed: bool = False,
    wide: bool = False,
) -> dict[str, Any]:
    """What the sound rule of a node is told: terms per output element and the precision.

    Args:
        executed: count those of the network itself beside those of the bound, which a centred
            rule does not do on its own.
        wide: take long sums of centres in float64, and not in blocks.
    """
    full, precision = _terms(spec, operands, node.attrs), _precision([*operands, node.result])
    found: dict[str, Any] = {TERMS: full, PRECISION: precision}
    if wide:
        return found | ({WIDE: True} if _in_float64(spec, full, precision) else {})
    parts = 1
    if spec.rounding.blocks is not None:
        parts = _counted(spec.rounding.blocks, operands, node.attrs)
    if parts > 1:
        # An offset and what else is not a product of the sum stay as they are.
        found |= {TERMS: -(-full // parts) + parts + 1, PARTS: parts, FULL: full}
    if executed and spec.centred and not exact(spec):
        found |= {TERMS: found[TERMS] + full + 4, FULL: 2 * full + 4}
    return found


def turns(spec: OpSpec, operands: Sequence[Value]) -> dict[str, int]:
    """Parts that the generators of a zonotope go through a linear layer in."""
    if spec.name not in ("linear", "linear_margin"):
        return {}
    columns = operands[1].type.shape[1]
    assert isinstance(columns, int)
    parts = in_blocks(columns, most=8)
    return {PARTS: parts} if parts > 1 else {}


def _in_float64(spec: OpSpec, terms: int, precision: str) -> bool:
    """Whether centres of an op are worth computing in float64, and the rule can do that."""
    return precision == "f32" and terms > _LONG and spec.name in _PRODUCTS


def backward_attributes(
    spec: OpSpec,
    operands: Sequence[Value],
    bounded: Sequence[int],
    node: Node,
    batch: int | None,
    *,
    direct: bool,
    operand_dims: tuple[int, ...],
) -> dict[str, Any]:
    """What the sound backward rule of a node is told.

    Args:
        spec, operands, node: the op, its operands and the concrete node.
        bounded: positions of the bounded operands.
        batch: where samples are separated in the result.
        direct: the result's interval was computed from the intervals that the rule gets.
        operand_dims: dimensions of a coefficient on the operand that belong to its sample.
    """
    shape = node.result.type.shape
    elements = math.prod(e for i, e in enumerate(shape) if i != batch and isinstance(e, int))
    floats = sum(v.type.is_float for v in operands)
    plain = floats > len(bounded)
    if spec.kind is Kind.STRUCTURAL and not plain and _moves(spec, operands, node.attrs):
        terms, moves = 0, True
    else:
        terms, moves = _transposed(spec, operands, node, elements), False
    full, precision = _terms(spec, operands, node.attrs), _precision([*operands, node.result])
    # Centres move with the elements where there is one operand: its interval is mapped.
    centred = spec.centred or (spec.kind is Kind.STRUCTURAL and floats == 1)
    wide = _in_float64(spec, full, precision)
    step = (tuple(bounded), moves, direct and centred, terms, full, wide, operand_dims)
    return dict(zip(STEP, step, strict=True)) | {"elements": elements, PRECISION: precision}


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
    return own + _counted(rounding.transposed, operands, node.attrs)


def _counted(count: Callable[..., int], operands: Sequence[Value], attrs: Mapping[str, Any]) -> int:
    """A number that an op declares, which does not depend on a dynamic size."""
    sizes = dict.fromkeys(_symbols(operands, attrs), PROBES[0])
    parts = [meta_tensor(value.type, sizes) for value in operands]
    return count(*parts, **{key: evaluate(value, sizes) for key, value in attrs.items()})


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
