"""What it costs to bound a program, estimated from its types alone.

A concrete op's products are counted by torch's own counter on tensors without data. What a
bound rule does with them follows from the kind of the op: an interval takes two products for
one, a symbolic value one for its centre and one for each symbol, a backward form one for each
row. The rest is traffic: elements read and written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import networkx as nx
import torch
from torch.utils.flop_counter import FlopCounterMode

from boundgraph import ops
from boundgraph.ir.analysis import graph_view, liveness
from boundgraph.ir.program import Node, Program, Value
from boundgraph.ir.types import Dim, TensorType, evaluate_shape
from boundgraph.ops import Kind, OpSpec
from boundgraph.ops._sound_backward import walks

_ITEM = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}
_DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}
# Products of Rump's enclosure of a product of two intervals.
_BILINEAR_INTERVAL = 5
# How often a rule goes over its elements: measured on a CPU, see docs/planner.md.
_AFFINE_PASSES, _RELAXED_PASSES, _ASSEMBLE_PASSES = 2, 5, 4
# Kernels that a node of a bounded program becomes.
_KERNELS = 4
# Lines of a curve are searched for, once for all rows.
_CURVE_KERNELS = 200
# What lives beside a value while a rule works on it. A form may have to wait for two others.
_TEMPORARIES = {"form": 6, "symbolic": 2, "interval": 2}


@dataclass(frozen=True)
class Cost:
    """What a computation costs.

    Args:
        flops: floating-point operations of matrix products and convolutions, a product and a
            sum each, as `torch.utils.flop_counter` counts them.
        traffic: bytes read and written.
        kernels: calls of torch ops.
    """

    flops: int = 0
    traffic: int = 0
    kernels: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops, self.traffic + other.traffic, self.kernels + other.kernels
        )


def total(costs: Iterable[Cost]) -> Cost:
    """The sum."""
    return sum(costs, Cost())


@dataclass(frozen=True)
class Machine:
    """Nominal speeds, which turn a cost into seconds.

    Fixed numbers, so that a plan does not depend on how busy the machine is.

    Args:
        name: for the text of a plan.
        flops: floating-point operations per second.
        bandwidth: bytes per second.
        launch: seconds per kernel.
    """

    name: str
    flops: float
    bandwidth: float
    launch: float

    def seconds(self, cost: Cost) -> float:
        """Estimated time, nothing overlapping."""
        return cost.flops / self.flops + cost.traffic / self.bandwidth + cost.kernels * self.launch


CPU = Machine("cpu", 6e10, 2.5e9, 1e-5)
CUDA = Machine("cuda", 1e13, 1e12, 5e-6)
MACHINES = {"cpu": CPU, "cuda": CUDA}


class Costs:
    """Costs of one concrete program at one batch size.

    Args:
        program: a concrete program.
        bounded: names of the inputs that carry a region.
        batch: samples.
        sound: forms account for rounding, which some ops cannot.
        symbolic: backward walks are those of the method `symbolic`, which end at ops without a
            symbolic rule.
    """

    def __init__(
        self,
        program: Program,
        bounded: Iterable[str],
        batch: int = 1,
        *,
        sound: bool = False,
        symbolic: bool = False,
    ) -> None:
        self.program, self.batch, self.sound = program, batch, sound
        self.as_symbolic = symbolic
        self.nodes = {str(node.result): node for node in program.nodes}
        self.values: dict[str, Value] = {
            str(v): v for v in (*program.inputs, *(n.result for n in program.nodes))
        }
        whole: nx.DiGraph[str] = graph_view(program, params=False)
        names = set(bounded)
        self.sources = [str(value) for value in program.inputs if value.name in names]
        reached = set(self.sources)
        for source in self.sources:
            reached |= nx.descendants(whole, source)
        self.graph: nx.DiGraph[str] = nx.DiGraph(whole.subgraph(reached))
        self._products: dict[tuple[str, int], int] = {}

    # What the program is like.

    def spec(self, node: Node) -> OpSpec:
        found = ops.get(node.op)
        if found is None:
            raise KeyError(node.op)
        return found

    def bounded(self, node: Node) -> list[Value]:
        return [value for value in node.inputs if str(value) in self.graph]

    def reads_intervals(self, node: Node) -> bool:
        """Whether a node's bound rules take intervals of its bounded operands."""
        if self.as_symbolic:
            return self.spec(node).symbolic is None or self.adds_symbols(node)
        return self.spec(node).reads_intervals(len(self.bounded(node)))

    def walks(self, node: Node) -> bool:
        """Whether a form goes through a node, or stops at its interval."""
        spec = self.spec(node)
        if spec.backward is None or (self.as_symbolic and spec.symbolic is None):
            return False
        return not self.sound or walks(spec, self.reads_intervals(node), node.attrs)

    def walks_like_symbols(self) -> bool:
        """Whether forms go through every op that symbols go through."""
        nodes = [node for key, node in self.nodes.items() if key in self.graph]
        return all(self.walks(n) or self.spec(n).symbolic is None for n in nodes)

    @cached_property
    def walked(self) -> nx.DiGraph[str]:
        """The bounded values, without edges that no form goes along."""
        found = nx.DiGraph(self.graph)
        for key, node in self.nodes.items():
            if key in found and not self.walks(node):
                found.remove_edges_from(list(found.in_edges(key)))
        return found

    @cached_property
    def relaxed(self) -> frozenset[str]:
        """Results of nodes that forms go through by lines."""
        return frozenset(
            key
            for key, node in self.nodes.items()
            if key in self.graph and self.walks(node) and self.reads_intervals(node)
        )

    def needed(self) -> dict[str, list[Node]]:
        """Bounded results whose intervals some rule reads, and the readers, in order."""
        found: dict[str, list[Node]] = {}
        for node in self.program.nodes:
            if str(node.result) in self.graph and self.reads_intervals(node):
                for value in dict.fromkeys(self.bounded(node)):
                    if str(value) in self.nodes:
                        found.setdefault(str(value), []).append(node)
        return found

    @cached_property
    def batch_dims(self) -> dict[str, int | None] | None:
        """The batch dimension of each bounded value; None where it does not stay one of its own.

        All but intervals need it.
        """
        batch: dict[str, int | None] = {}
        for key, value in self.values.items():
            if key not in self.graph:
                continue
            dynamic = [i for i, size in enumerate(value.type.shape) if isinstance(size, Dim)]
            node = self.nodes.get(key)
            if node is None:
                batch[key] = dynamic[0] if dynamic else None
                continue
            dims = tuple(batch.get(str(operand)) for operand in node.inputs)
            if all(dim is None for dim in dims):
                batch[key] = None
                continue
            rule, shapes = self.spec(node).batch, tuple(v.type.shape for v in node.inputs)
            found = None if rule is None else rule(dims, shapes, value.type.shape, **node.attrs)
            if found is None or dynamic not in ([], [found]):
                return None
            batch[key] = found
        return batch

    # Sizes.

    def elements(self, value: Value, batch: int | None = None) -> int:
        """Number of elements; `batch` samples, by default all."""
        return _elements(value.type, self.batch if batch is None else batch)

    def rows(self, value: Value) -> int:
        """Elements of one sample: the rows of a form that starts there."""
        return math.prod(entry for entry in value.type.shape if isinstance(entry, int))

    def products(self, node: Node, batch: int) -> int:
        """What torch counts for the concrete op."""
        key = (str(node.result), batch)
        if key not in self._products:
            self._products[key] = _products(node, self.spec(node), batch)
        return self._products[key]

    # Costs of one node.

    def interval(self, node: Node) -> Cost:
        """One node of the interval track."""
        count = len(self.bounded(node))
        both = self.spec(node).kind is Kind.BILINEAR and count > 1
        flops = self.products(node, self.batch) * (_BILINEAR_INTERVAL if both else 2)
        touched = sum(self.elements(v) for v in self.bounded(node)) + self.elements(node.result)
        return Cost(flops, touched * 2 * _item(node.result) * _AFFINE_PASSES, _KERNELS)

    def symbols(self) -> dict[str, int]:
        """Number of symbols of each bounded value in the forward schedule."""
        return {key: sum(blocks.values()) for key, blocks in self.blocks().items()}

    def blocks(self) -> dict[str, dict[str, int]]:
        """Blocks of symbols of each bounded value, by what made them, and their numbers."""
        found: dict[str, dict[str, int]] = {
            key: {key: self.rows(self.values[key])} for key in self.sources
        }
        for key, node in self.nodes.items():
            if key not in self.graph:
                continue
            spec, own = self.spec(node), {key: self.rows(node.result)}
            if spec.symbolic is None:
                found[key] = own
                continue
            found[key] = {}
            for value in self.bounded(node):
                found[key] |= found[str(value)]
            if self.adds_symbols(node):
                found[key] |= own
        return found

    def adds_symbols(self, node: Node) -> bool:
        """Whether a node with a symbolic rule is relaxed by it."""
        spec = self.spec(node)
        exact = spec.kind is Kind.BILINEAR and len(self.bounded(node)) == 1
        return spec.relaxed and not exact

    def symbolic(self, node: Node, symbols: dict[str, int], *, track: bool) -> Cost:
        """One node of the forward schedule, with its interval track or without."""
        products = self.products(node, self.batch)
        own = self.elements(node.result) * (1 + symbols[str(node.result)])
        read = sum(self.elements(v) * (1 + symbols[str(v)]) for v in self.bounded(node))
        flops = 0
        if self.spec(node).symbolic is not None:
            flops = products * sum(1 + symbols[str(v)] for v in self.bounded(node))
        passes = 2 if self.reads_intervals(node) else 1
        traffic = (own + read * passes) * _item(node.result)
        found = Cost(flops, traffic, _KERNELS)
        if not track and self.spec(node).symbolic is not None:
            return found
        if products and not self._behind_a_relaxation(node):
            # The centre of the interval is that of the symbolic value still.
            found += Cost(-products)
        return found + self.interval(node)

    def _behind_a_relaxation(self, node: Node) -> bool:
        above = nx.ancestors(self.graph, str(node.result)) & set(self.nodes)
        return any(
            self.spec(self.nodes[key]).symbolic is None or self.adds_symbols(self.nodes[key])
            for key in (*above, str(node.result))
        )

    def walk(self, value: Value, *, lower_only: bool = False) -> Cost:
        """A walk from a value back to the regions, all rows of all samples."""
        rows = self.rows(value)
        signs = 1 if lower_only else 2
        found = Cost()
        own = self._own_forms(value)
        for key in self._on_the_way(value):
            if key not in self.nodes or not self.walks(self.nodes[key]):
                ended = rows * signs * self.elements(self.values[key])
                found += Cost(0, ended * _ASSEMBLE_PASSES * _item(value), _KERNELS)
                continue
            node = self.nodes[key]
            relaxed = key in self.relaxed
            apart = key in own or relaxed
            batch, count = (self.batch, rows * signs) if apart else (1, rows)
            found += self._back(node, count, batch, relaxed)
        return found

    def _back(self, node: Node, rows: int, batch: int, relaxed: bool) -> Cost:
        spec, bounded = self.spec(node), self.bounded(node)
        made = self.elements(node.result, batch)
        touched = sum(self.elements(v, batch) for v in bounded) + made
        products = self.products(node, batch)
        flops = rows * products * len(bounded)
        if relaxed and spec.kind is Kind.BILINEAR:
            flops += 2 * self.products(node, self.batch)
        if relaxed and spec.kind is Kind.ELEMENTWISE:
            # The lower line of a rectifier goes through the origin: one sum of products less.
            from_origin = spec.learnable and not self.as_symbolic
            flops += 2 * rows * made * (1 if from_origin else 2)
        passes = _RELAXED_PASSES if relaxed else (_AFFINE_PASSES if products else 1)
        traffic, kernels = rows * touched * passes, _KERNELS
        if relaxed and spec.lines is not None and not spec.learnable:
            traffic += self.elements(node.result) * _CURVE_KERNELS
            kernels += _CURVE_KERNELS
        return Cost(flops, traffic * _item(node.result), kernels)

    def _on_the_way(self, value: Value) -> set[str]:
        return nx.ancestors(self.walked, str(value)) | {str(value)}

    def _own_forms(self, value: Value) -> set[str]:
        """Values at which each sample has coefficients of its own: behind a relaxed op."""
        way = self._on_the_way(value)
        behind: set[str] = set()
        for key in self.relaxed & way:
            behind |= nx.ancestors(self.walked, key)
        return behind & way

    # Memory.

    def interval_bytes(self, batch: int) -> int:
        """Peak of the interval track."""
        return self._peak(dict.fromkeys(self.graph, 2), batch, "interval")

    def symbolic_bytes(self, symbols: dict[str, int], batch: int) -> int:
        """Peak of the forward schedule."""
        return self._peak({key: 3 + symbols[key] for key in self.graph}, batch, "symbolic")

    def row_bytes(self, value: Value, batch: int, *, lower_only: bool = False) -> int:
        """What one row (and its negative) of a walk takes at its widest."""
        signs = 1 if lower_only else 2
        widest = max(self.elements(self.values[key], batch) for key in self._on_the_way(value))
        return widest * signs * _item(value) * (1 + _TEMPORARIES["form"])

    def _peak(self, times: dict[str, int], batch: int, kind: str) -> int:
        last = liveness(self.program)

        def size(value: Value) -> int:
            return self.elements(value, batch) * _item(value) * times.get(str(value), 1)

        live = {str(value): size(value) for value in self.program.inputs}
        peak = 0
        for index, node in enumerate(self.program.nodes):
            live[str(node.result)] = size(node.result)
            widest = max(live.get(str(v), 0) for v in (*node.inputs, node.result))
            peak = max(peak, sum(live.values()) + _TEMPORARIES[kind] * widest)
            for key in [str(v) for v in (*node.inputs, node.result)]:
                if key in live and last.get(key, index) <= index:
                    del live[key]
        return max(peak, sum(live.values()))


def _elements(type_: TensorType, batch: int) -> int:
    names = {entry.symbol for entry in type_.shape if isinstance(entry, Dim)}
    return math.prod(evaluate_shape(type_.shape, dict.fromkeys(names, batch)))


def _item(value: Value) -> int:
    return _ITEM.get(value.type.dtype, 8)


def _products(node: Node, spec: OpSpec, batch: int) -> int:
    """Count an op's products on tensors without data."""
    if spec.kind not in (Kind.AFFINE, Kind.BILINEAR, Kind.COMPOSITE):
        return 0

    def sized(entry: Any) -> Any:
        if isinstance(entry, tuple):
            return tuple(sized(item) for item in entry)
        return entry.evaluate({entry.symbol: batch}) if isinstance(entry, Dim) else entry

    given = [
        torch.empty(
            sized(value.type.shape),
            dtype=_DTYPES.get(value.type.dtype, torch.int64),
            device="meta",
        )
        for value in node.inputs
    ]
    attrs = {key: sized(value) for key, value in node.attrs.items()}
    counter = FlopCounterMode(display=False)
    with counter:
        spec.concrete(*given, **attrs)
    return int(counter.get_total_flops())
