"""Keep the batch a dimension of its own where a model merges it with others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from boundgraph import ops
from boundgraph.ir.program import Attrs, Node, Program, ProgramBuilder, Value
from boundgraph.ir.types import Dim, Shape, Size, Stage, TensorType, numel
from boundgraph.ops._spec import broadcast_batch, keep_batch
from boundgraph.passes.manager import Effect, Pass

# For each dimension of a value, the dimensions that it is split into.
Groups = tuple[Shape, ...]
# Ops whose dimensions are attributes and whose result has as many dimensions as the operand.
_KEEP_RANK = frozenset(
    ("softmax", "log_softmax", "cumsum", "flip", "roll", "center", "scale_to_unit", "slice")
) | frozenset(("index_select", "sort_values", "cummax_values", "cummin_values", "cat"))
_REDUCE = frozenset(("sum", "mean", "amax", "amin", "vector_norm"))


@dataclass(frozen=True)
class SplitBatch(Pass):
    """`[b, h, n]` reshaped to `[b·h, n]`, used and reshaped back stays `[b, h, n]` all the way.

    Attention merges the batch with its heads, and shifted windows merge it with the windows.
    There a row no longer belongs to one dimension of samples, which methods that keep apart
    what each sample depends on must refuse. Values are the same; ops that cannot take more
    dimensions get the merged ones.
    """

    name: ClassVar[str] = "split-batch"
    stage: ClassVar[Stage] = Stage.CONCRETE
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, program: Program) -> Program:
        if not any(_merged(node.result.type.shape) for node in program.nodes):
            return program
        run = _Run(ProgramBuilder(Stage.CONCRETE))
        for value in program.params:
            run.done[str(value)] = run.builder.param(value.name, value.type)
        for value in program.inputs:
            run.done[str(value)] = run.builder.input(value.name, value.type)
        for node in program.nodes:
            run.add(node)
        return run.builder.build([run.whole(value) for value in program.outputs])


def _merged(shape: Shape) -> bool:
    return any(isinstance(entry, Dim) and entry.coeff > 1 for entry in shape)


def _flat(groups: Groups) -> Shape:
    return tuple(entry for group in groups for entry in group)


def _quotient(whole: Size, part: Size) -> Size | None:
    """`whole / part` where it is exact for every batch size."""
    if isinstance(whole, int):
        return whole // part if isinstance(part, int) and part and whole % part == 0 else None
    if whole.offset:
        return 1 if whole == part else None
    if isinstance(part, int):
        exact = part > 0 and whole.coeff % part == 0
        return Dim(whole.symbol, whole.coeff // part) if exact else None
    if part.offset or part.symbol != whole.symbol or whole.coeff % part.coeff:
        return None
    return whole.coeff // part.coeff


def refine(source: Shape, target: Shape) -> Groups | None:
    """How each target dimension is made of (parts of) source dimensions, in order.

    None where a target dimension begins or ends inside a dimension that has no such factor.
    """
    groups: list[list[Size]] = [[] for _ in target]
    rest = [entry for entry in reversed(source) if entry != 1]
    for group, size in zip(groups, target, strict=True):
        while size != 1:
            if not rest:
                return None
            part = rest.pop()
            left = _quotient(size, part)
            if left is None:
                over = _quotient(part, size)
                if over is None:
                    return None
                rest.append(over)
                part, left = size, 1
            group.append(part)
            size = left
    return tuple(map(_tidy, groups))


def _tidy(parts: Sequence[Size]) -> Shape:
    """Parts of one dimension: all in one, unless the batch is among others."""
    dynamic = [i for i, part in enumerate(parts) if isinstance(part, Dim)]
    if not dynamic:
        return (numel(tuple(parts)),)
    at = dynamic[0]
    before, after = numel(tuple(parts[:at])), numel(tuple(parts[at + 1 :]))
    return tuple(part for part in (before, parts[at], after) if part != 1)


@dataclass
class _Run:
    """The new program so far, and which of its values are split."""

    builder: ProgramBuilder
    done: dict[str, Value] = field(default_factory=dict)
    groups: dict[str, Groups] = field(default_factory=dict)

    def add(self, node: Node) -> None:
        split = [v for v in node.inputs if str(v) in self.groups]
        if node.op == "reshape" and (split or _merged(node.result.type.shape)):
            if self._reshape(node):
                return
        elif split:
            handler = self._handler(node)
            if handler is not None and handler(node):
                return
        inputs = [self.whole(value) for value in node.inputs]
        self.done[str(node.result)] = self._emit(node, inputs, node.result.type.shape, node.attrs)

    def whole(self, value: Value) -> Value:
        """The value with the dimensions that the model gave it."""
        found = self.done[str(value)]
        return self._shaped(found, value.type.shape)

    def _shaped(self, value: Value, shape: Shape) -> Value:
        if value.type.shape == shape:
            return value
        type_ = TensorType(value.type.dtype, shape)
        return self.builder.add("reshape", (value,), type_, {"shape": shape})

    def _emit(self, node: Node, inputs: Sequence[Value], shape: Shape, attrs: Attrs) -> Value:
        type_ = TensorType(node.result.type.dtype, shape)
        name = node.result.name
        return self.builder.add(node.op, inputs, type_, attrs, name=name, span=node.span)

    def _finish(self, node: Node, inputs: Sequence[Value], groups: Groups, **attrs: object) -> bool:
        merged = Attrs({**node.attrs, **attrs}.items())
        key = str(node.result)
        self.done[key] = self._emit(node, inputs, _flat(groups), merged)
        if any(len(group) > 1 for group in groups):
            self.groups[key] = groups
        return True

    def _handler(self, node: Node) -> Callable[[Node], bool] | None:
        spec = ops.get(node.op)
        if node.op in ("linear", "matmul", "permute", "expand", "select"):
            return getattr(self, f"_{node.op}")  # type: ignore[no-any-return]
        if node.op in _KEEP_RANK:
            return self._keep_rank
        if node.op in _REDUCE:
            return self._reduce
        if spec is not None and spec.batch is broadcast_batch:
            return self._broadcast
        if spec is not None and spec.batch is keep_batch and len(node.inputs) == 1:
            return lambda n: self._finish(n, [self._split(n)], self._own(n))
        return None

    def _split(self, node: Node) -> Value:
        return self.done[str(node.inputs[0])]

    def _own(self, node: Node) -> Groups:
        key = str(node.inputs[0])
        return self.groups.get(key) or tuple((entry,) for entry in node.inputs[0].type.shape)

    def _reshape(self, node: Node) -> bool:
        source = self._split(node)
        groups = refine(source.type.shape, node.result.type.shape)
        if groups is None:
            return False
        key = str(node.result)
        self.done[key] = self._shaped(source, _flat(groups))
        if any(len(group) > 1 for group in groups):
            self.groups[key] = groups
        return True

    def _linear(self, node: Node) -> bool:
        groups, rest = self._own(node), node.inputs[1:]
        if len(groups[-1]) > 1 or any(str(value) in self.groups for value in rest):
            return False
        inputs = [self._split(node), *(self.done[str(value)] for value in rest)]
        return self._finish(node, inputs, (*groups[:-1], (node.result.type.shape[-1],)))

    def _matmul(self, node: Node) -> bool:
        lead = self._like(node, len(node.result.type.shape), trailing=2)
        if lead is None or any(len(group) > 1 for group in lead[1][-2:]):
            return False
        inputs, groups = lead
        last = tuple((entry,) for entry in node.result.type.shape[-2:])
        return self._finish(node, inputs, (*groups[:-2], *last))

    def _broadcast(self, node: Node) -> bool:
        like = self._like(node, len(node.result.type.shape), trailing=0)
        return like is not None and self._finish(node, *like)

    def _like(self, node: Node, rank: int, trailing: int) -> tuple[list[Value], Groups] | None:
        """All operands split alike; dimensions of size 1 split into ones."""
        known = [self.groups[str(v)] for v in node.inputs if str(v) in self.groups]
        if any(len(groups) != rank for groups in known):
            return None
        groups = known[0]
        lead = rank - trailing
        if not all(all(map(_fits, groups[:lead], other[:lead])) for other in known):
            return None
        sizes = zip(groups[:lead], node.result.type.shape, strict=False)
        groups = (*(g if len(g) > 1 else (size,) for g, size in sizes), *groups[lead:])
        inputs = []
        for value in node.inputs:
            new, shape = self.done[str(value)], value.type.shape
            if str(value) not in self.groups:
                parts: list[Size] = []
                for entry, group in zip(shape[::-1], groups[::-1], strict=False):
                    whole = entry == numel(group)
                    parts += (
                        group[::-1] if whole else (entry,) * len(group) if entry == 1 else (entry,)
                    )
                    if len(group) > 1 and not whole and entry != 1:
                        return None
                new = self._shaped(new, tuple(parts[::-1]))
            inputs.append(new)
        return inputs, groups

    def _permute(self, node: Node) -> bool:
        groups, order = self._own(node), node.attrs["dims"]
        dims = tuple(
            at + i
            for dim in order
            for at in (_start(groups, dim),)
            for i in range(len(groups[dim]))
        )
        return self._finish(node, [self._split(node)], tuple(groups[d] for d in order), dims=dims)

    def _expand(self, node: Node) -> bool:
        groups = self._resized(node)
        return self._finish(node, [self._split(node)], groups, shape=_flat(groups))

    def _select(self, node: Node) -> bool:
        groups, dim = self._own(node), node.attrs["dim"]
        if len(groups[dim]) > 1:
            return False
        kept = (*groups[:dim], *groups[dim + 1 :])
        return self._finish(node, [self._split(node)], kept, dim=_start(groups, dim))

    def _resized(self, node: Node) -> Groups:
        """Split dimensions as they were, the others as the result has them."""
        pairs = zip(self._own(node), node.result.type.shape, strict=True)
        return tuple(group if len(group) > 1 else (size,) for group, size in pairs)

    def _keep_rank(self, node: Node) -> bool:
        attrs = self._remapped(node)
        rank = len(node.result.type.shape)
        if attrs is None:
            return False
        if len(node.inputs) == 1 or node.op == "index_select":
            inputs = [self._split(node), *(self.done[str(v)] for v in node.inputs[1:])]
            return self._finish(node, inputs, self._resized(node), **attrs)
        if any(str(value) not in self.groups for value in node.inputs):
            return False
        every = [self.groups[str(value)] for value in node.inputs]
        splits = [[g for g in groups if len(g) > 1] for groups in every]
        if any(s != splits[0] for s in splits) or any(len(g) != rank for g in every):
            return False
        return self._finish(
            node, [self.done[str(v)] for v in node.inputs], self._resized(node), **attrs
        )

    def _reduce(self, node: Node) -> bool:
        attrs = self._remapped(node)
        if attrs is None:
            return False
        groups = self._own(node)
        dims = node.attrs.get("dims", (node.attrs.get("dim"),))
        kept = tuple(
            (1,) if i in dims else group
            for i, group in enumerate(groups)
            if i not in dims or node.attrs["keepdim"]
        )
        return self._finish(node, [self._split(node)], kept, **attrs)

    def _remapped(self, node: Node) -> dict[str, object] | None:
        """Dimensions counted in the split value; None where one of them is split itself."""
        groups = self._own(node)
        attrs: dict[str, object] = {}
        for key in ("dim", "dims"):
            if key not in node.attrs:
                continue
            given = node.attrs[key]
            dims = given if isinstance(given, tuple) else (given,)
            if any(len(groups[dim]) > 1 for dim in dims):
                return None
            mapped = tuple(_start(groups, dim) for dim in dims)
            attrs[key] = mapped if isinstance(given, tuple) else mapped[0]
        return attrs


def _fits(first: Shape, second: Shape) -> bool:
    """Whether two dimensions are split alike, or neither is and they broadcast."""
    plain = len(first) == len(second) == 1
    return first == second or (plain and 1 in (first[0], second[0]))


def _start(groups: Groups, dim: int) -> int:
    """Where the parts of a dimension begin."""
    return sum(len(group) for group in groups[:dim])
