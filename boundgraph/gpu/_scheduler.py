"""What Inductor's scheduler and its graphs say about the kernels to come; private torch API."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class SchedulerKernel:
    """One kernel as Inductor's scheduler sees it.

    Args:
        name: of the scheduler node.
        kind: "pointwise", "reduction", "library" or "none" (no launch: a view, an alias).
        ops: the ATen ops it fuses, in order.
        bytes: read and written, each buffer once, of a slice its own elements.
        flops: of matrix products and convolutions.
        side_by_side: independent kernels that share the launch (combo kernels).
    """

    name: str
    kind: str
    ops: tuple[str, ...]
    bytes: int
    flops: int
    side_by_side: int = 1


def kernel_of(node: Any, seen: set[Any]) -> SchedulerKernel:
    kind = type(node).__name__
    parts = list(node.get_nodes())
    size = _moved_bytes(node)
    # One output of a library call with several has no launch and no bytes of its own.
    if kind == "NopKernelSchedulerNode" or (node.is_extern() and not size):
        kind = "none"
    elif node.is_extern():
        kind = "library"
    else:
        kind = "reduction" if node.is_reduction() else "pointwise"
    origins = [
        origin
        for part in parts
        for origin in (part.node.get_origins() if part.node is not None else ())
    ]
    names = dict.fromkeys(
        str(getattr(origin.target, "overloadpacket", origin.target)).removeprefix("aten.")
        for origin in origins
        if origin.op == "call_function"
    )
    return SchedulerKernel(
        name=node.get_name(),
        kind=kind,
        ops=tuple(names),
        bytes=size,
        flops=sum(_flops(origin, seen) for origin in origins) if kind == "library" else 0,
        side_by_side=_side_by_side(node),
    )


def _moved_bytes(node: Any) -> int:
    """Bytes as the scheduler counts them, which takes a slice of a buffer for the whole of it."""
    from torch._inductor.dependencies import MemoryDep
    from torch._inductor.virtualized import V

    whole = node.get_read_write_buffer_accesses(include_reads=True, include_writes=True)
    if node.is_extern():
        return int(sum(whole.values()))
    used: dict[str, set[Any]] = defaultdict(set)
    for dep in node.read_writes.reads | node.read_writes.writes:
        used[dep.name].add(dep)
    total = 0
    for name, size in whole.items():
        deps = used[name]
        if all(isinstance(dep, MemoryDep) and not dep.is_indirect() for dep in deps):
            elements = sum(int(dep.get_numel()) for dep in deps)
            size = min(size, elements * V.graph.get_dtype(name).itemsize)
        total += int(size)
    return total


def _side_by_side(node: Any) -> int:
    return len(node.snodes) if type(node).__name__ == "ForeachKernelSchedulerNode" else 1


def _pair_flops(center: Any, radius: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 4 * int(center.shape[0]) * int(weight.numel())


_OWN_FLOPS = {"boundgraph.interval_linear": _pair_flops}


def _flops(node: Any, seen: set[Any]) -> int:
    from torch.fx.node import map_arg
    from torch.utils.flop_counter import flop_registry

    if node.op != "call_function" or node in seen:
        return 0
    packet = getattr(node.target, "overloadpacket", None)
    count = flop_registry.get(packet, _OWN_FLOPS.get(str(packet)))
    if count is None:
        return 0
    seen.add(node)

    def value(arg: Any) -> Any:
        return arg.meta["val"]

    args, keywords = map_arg(node.args, value), map_arg(node.kwargs, value)
    flops = count(*args, **keywords, out_val=value(node))
    # A size that depends on data has no number; the graph is reported to synchronise there.
    return flops if isinstance(flops, int) else 0


def synchronisations(module: Any) -> list[str]:
    """Ops whose result the host has to wait for: a size or a number that depends on data."""
    return [
        str(node.target)
        for node in module.graph.nodes
        if node.meta.get("unbacked_bindings") or "_local_scalar" in str(node.target)
    ]


def moving_inputs(module: Any, static: Sequence[int]) -> list[str]:
    """Inputs that the graph writes and that are not known to keep their address."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    written = {
        node.args[0]
        for node in module.graph.nodes
        if node.op == "call_function" and node.target is torch.ops.aten.copy_.default
    }
    return [node.name for i, node in enumerate(inputs) if node in written and i not in static]
