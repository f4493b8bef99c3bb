"""How much memory a program's bounds take, estimated from its types alone.

Intervals cost about as much as activations. Symbolic values hold one generator per
symbol and element, and forms one coefficient per row and element, so they decide how many
samples and rows fit. Weights are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from boundgraph.errors import MemoryBudgetError
from boundgraph.ir.analysis import liveness
from boundgraph.ir.program import Node, Program, Value
from boundgraph.ir.types import (
    Dim,
    FormType,
    IntervalType,
    SymbolicType,
    TensorType,
    evaluate_shape,
)
from boundgraph.runtime.walks import Step, Walk

_ITEM = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}
# Rules make up to two temporaries of the size of their result (|generator|, a product).
_TEMPORARIES = 2
# A form is split by sign and multiplied by slopes and offsets.
_FORM_TEMPORARIES = 4
_DEFAULT_CPU = 1 << 30


def fixed_batch(program: Program) -> int | None:
    """The batch size that a program is limited to, None where it takes any."""
    first = program.inputs[0].type.shape
    if any(isinstance(entry, Dim) for entry in first):
        return None
    return int(first[0]) if first and isinstance(first[0], int) else 1


def peak_bytes(program: Program, batch: int = 1) -> int:
    """Estimated peak of the live bounds in bytes, all rows at once."""
    return _peak(program.inputs, program.nodes, liveness(program), _symbols(program), batch=batch)


def row_bytes(walk: Walk, batch: int) -> float:
    """Estimated peak of one row (two, where signed) of a backward walk, in bytes."""
    nodes = (walk.seed, *walk.nodes)
    last = {str(walk.seed.result): 0}
    for index, node in enumerate(nodes):
        last[str(node.result)] = index
        last.update((str(v), index) for v in node.inputs if isinstance(v.type, FormType))
    last.update((str(v), len(nodes)) for v in walk.assemble.inputs if isinstance(v.type, FormType))
    return _peak((), nodes, last, {}, batch=batch, forms=True) / walk.rows


def outside_bytes(program: Program, steps: Sequence[Step], batch: int) -> int:
    """Estimated peak of what lives between the walks."""
    last: dict[str, int] = {str(value): -1 for value in program.inputs}
    made: list[Node] = []
    for index, step in enumerate(steps):
        node = step if isinstance(step, Node) else (step.tighten or step.assemble)
        made.append(node)
        last[str(node.result)] = index
        last.update((str(value), index) for value in step.inputs)
    last.update((str(value), len(steps)) for value in program.outputs)
    return _peak(program.inputs, made, last, _symbols(program), batch=batch)


def _peak(
    inputs: Sequence[Value],
    nodes: Sequence[Node],
    last: dict[str, int],
    symbols: dict[str, int],
    *,
    batch: int,
    forms: bool = False,
) -> int:
    size = {str(v): _bytes(v.type, symbols, batch) for v in inputs}
    live = sum(size.values())
    peak = live
    for index, node in enumerate(nodes):
        if forms and not isinstance(node.result.type, FormType):
            continue
        result = str(node.result)
        # Generators on windows take fewer numbers than there are symbols.
        windows: Any = dict(node.attrs).get("windows", ())
        size[result] = _bytes(node.result.type, symbols | dict(windows), batch)
        live += size[result]
        widest = max([size[result], *(size.get(str(v), 0) for v in node.inputs)])
        temporaries = _FORM_TEMPORARIES if forms else _TEMPORARIES
        peak = max(peak, live + temporaries * widest)
        for value in {str(v) for v in (*node.inputs, node.result)}:
            if value in size and last.get(value, index) <= index:
                live -= size.pop(value)
    return peak


def default_budget(device: torch.device) -> int:
    """1 GiB on a CPU, half of what is free on a GPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    return _DEFAULT_CPU


def samples_within(program: Program, budget: int | None, device: torch.device) -> int:
    """How many samples may go through at once, all rows of each.

    Args:
        program: a bounded program with a dynamic batch size.
        budget: bytes; by default 1 GiB on a CPU, half of what is free on a GPU.
        device: where it runs.

    Raises:
        MemoryBudgetError: a single sample exceeds an explicit budget.
    """
    need = max(peak_bytes(program), 1)
    if budget is not None and need > budget:
        raise too_small(need, budget)
    return max(1, (budget or default_budget(device)) // need)


def too_small(need: int, budget: int) -> MemoryBudgetError:
    """The error for a budget that the smallest piece of work exceeds."""
    return MemoryBudgetError(
        f"bounding one sample needs about {need:,} bytes, more than max_memory={budget:,}; "
        "raise it, or use a method that needs less, such as 'ibp'"
    )


def _symbols(program: Program) -> dict[str, int]:
    """Number of symbols of each block."""
    found: dict[str, int] = {}
    for node in program.nodes:
        attrs = dict(node.attrs)
        if "block" in attrs:
            features = attrs.get("features", ())
            found[str(attrs["block"])] = max(1, math.prod(features))  # type: ignore[arg-type]
    return found


def _bytes(type_: TensorType, symbols: dict[str, int], batch: int) -> int:
    names = {entry.symbol for entry in type_.shape if isinstance(entry, Dim)}
    elements = math.prod(evaluate_shape(type_.shape, dict.fromkeys(names, batch)))
    item = _ITEM.get(type_.dtype, 8)
    if isinstance(type_, SymbolicType):
        return elements * item * (1 + sum(symbols.get(name, 1) for name in type_.blocks))
    return elements * item * (2 if isinstance(type_, IntervalType) else 1)
