"""How much memory a program's bounds take, estimated from its types alone.

Intervals cost about as much as activations. Symbolic values hold one generator per
symbol and element, so they decide how many samples fit.
"""

from __future__ import annotations

import math

import torch

from boundgraph.errors import ConfigError
from boundgraph.ir.analysis import liveness
from boundgraph.ir.program import Program
from boundgraph.ir.types import Dim, IntervalType, SymbolicType, TensorType, evaluate_shape

_ITEM = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}
# Rules make up to two temporaries of the size of their result (|generator|, a product).
_TEMPORARIES = 2
_DEFAULT_CPU = 1 << 30


def fixed_batch(program: Program) -> int | None:
    """The batch size that a program is limited to, None where it takes any."""
    first = program.inputs[0].type.shape
    if any(isinstance(entry, Dim) for entry in first):
        return None
    return int(first[0]) if first and isinstance(first[0], int) else 1


def peak_bytes(program: Program) -> int:
    """Estimated peak of the live bounds, in bytes, for a batch of one (or the fixed batch)."""
    symbols = _symbols(program)
    last = liveness(program)
    size = {str(v): _bytes(v.type, symbols) for v in program.inputs}
    live = sum(size.values())
    peak = live
    for index, node in enumerate(program.nodes):
        result = str(node.result)
        size[result] = _bytes(node.result.type, symbols)
        live += size[result]
        widest = max([size[result], *(size.get(str(v), 0) for v in node.inputs)])
        peak = max(peak, live + _TEMPORARIES * widest)
        for value in {str(v) for v in (*node.inputs, node.result)}:
            if value in size and last[value] <= index:
                live -= size[value]
    return peak


def samples_within(program: Program, budget: int | None, device: torch.device) -> int:
    """How many samples may go through at once.

    Args:
        program: a bounded program with a dynamic batch size.
        budget: bytes; by default 1 GiB on a CPU, half of what is free on a GPU.
        device: where it runs.

    Raises:
        ConfigError: a single sample exceeds an explicit budget.
    """
    need = max(peak_bytes(program), 1)
    if budget is not None and need > budget:
        raise ConfigError(
            f"bounding one sample needs about {need:,} bytes, more than max_memory={budget:,}; "
            "raise it, or use a method that needs less, such as 'ibp'"
        )
    if budget is None:
        on_gpu = device.type == "cuda"
        budget = torch.cuda.mem_get_info(device)[0] // 2 if on_gpu else _DEFAULT_CPU
    return max(1, budget // need)


def _symbols(program: Program) -> dict[str, int]:
    """Number of symbols of each block."""
    found: dict[str, int] = {}
    for node in program.nodes:
        attrs = dict(node.attrs)
        if "block" in attrs:
            features = attrs.get("features", ())
            found[str(attrs["block"])] = max(1, math.prod(features))  # type: ignore[arg-type]
    return found


def _bytes(type_: TensorType, symbols: dict[str, int]) -> int:
    names = {entry.symbol for entry in type_.shape if isinstance(entry, Dim)}
    elements = math.prod(evaluate_shape(type_.shape, dict.fromkeys(names, 1)))
    item = _ITEM.get(type_.dtype, 8)
    if isinstance(type_, SymbolicType):
        return elements * item * (1 + sum(symbols.get(name, 1) for name in type_.blocks))
    return elements * item * (2 if isinstance(type_, IntervalType) else 1)
