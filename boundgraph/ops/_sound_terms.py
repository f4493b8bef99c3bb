"""What the sound rule of a node must know at compile time: how many terms its sums have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from boundgraph.ir.program import Node, Value
from boundgraph.ir.types import Dim
from boundgraph.ops._infer import PROBES, evaluate, meta_tensor
from boundgraph.ops._sound import PRECISION, TERMS
from boundgraph.ops._spec import OpSpec


def attributes(spec: OpSpec, operands: Sequence[Value], node: Node) -> dict[str, Any]:
    """What the sound rule of a node is told: terms per output element and the precision."""
    return {
        TERMS: _terms(spec, operands, node.attrs),
        PRECISION: _precision([*operands, node.result]),
    }


def _precision(values: Sequence[Value]) -> str:
    dtypes = {value.type.dtype for value in values if value.type.is_float}
    # The coarsest one rounds; half precision has no entry and is refused.
    return "f64" if dtypes == {"f64"} else "f32"


def _terms(spec: OpSpec, operands: Sequence[Value], attrs: Mapping[str, Any]) -> int:
    """Declared terms and ulps; the larger one where it depends on a dynamic size."""
    rounding = spec.rounding
    if rounding.terms is None:
        return math.ceil(rounding.ulps)
    symbols = {
        entry.symbol
        for shape in (*(value.type.shape for value in operands), *attrs.values())
        if isinstance(shape, tuple)
        for entry in shape
        if isinstance(entry, Dim)
    }
    counts = set()
    for probe in PROBES[:2]:
        sizes = dict.fromkeys(symbols, probe)
        parts = [meta_tensor(value.type, sizes) for value in operands]
        resolved = {key: evaluate(value, sizes) for key, value in attrs.items()}
        counts.add(math.ceil(rounding.terms(*parts, **resolved) + rounding.ulps))
    if len(counts) > 1:
        raise ValueError("the number of terms depends on the batch size")
    return counts.pop()
