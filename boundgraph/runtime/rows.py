"""Run a bounded program within a memory budget: few samples and few rows at a time.

Everything that a backward walk does, it does to each row by itself, so rows may be walked
in any portions. Where a walk only serves to tighten a relaxed op's operand, rows of
elements that no kink of the op splits are not walked at all: on a trained network these are
nearly all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from boundgraph.domains.interval import Interval, meet
from boundgraph.domains.linear_form import LinearForm, one_hot_rows, spread_rows
from boundgraph.ir.program import Node, Program, Value
from boundgraph.ir.types import Dim, FormType
from boundgraph.ops import bounded, get
from boundgraph.ops.bounded import BACKWARD, crosses, elements, least
from boundgraph.runtime.interpret import DimSizes, Lookup, run_node
from boundgraph.runtime.memory import (
    default_budget,
    outside_bytes,
    peak_bytes,
    row_bytes,
    too_small,
)
from boundgraph.runtime.slices import batch_size, cut, device_of, join, separable, tensor_of
from boundgraph.runtime.walks import Step, Walk, is_shared, split

# So many rows should fit beside each other before samples are put off for later.
_ROWS_AT_ONCE = 16


@dataclass
class Usage:
    """What a run did.

    Args:
        samples: samples at a time.
        rows: rows walked, by the value that they bound; of all samples together.
        of: rows there are.
        chunk: rows at a time.
    """

    samples: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    of: dict[str, int] = field(default_factory=dict)
    chunk: dict[str, int] = field(default_factory=dict)


class RowRunner:
    """Runs one program; holds no bounds between runs.

    Args:
        program: a bounded program.
        lookup: parameter path to tensor.
    """

    def __init__(self, program: Program, lookup: Lookup) -> None:
        self.program, self.lookup = program, lookup
        self.steps = split(program)
        self.walks = [step for step in self.steps if isinstance(step, Walk)]
        self.dynamic = any(isinstance(e, Dim) for v in program.inputs for e in v.type.shape)
        self._dies = _deaths(program, self.steps)

    def samples_within(self, budget: int | None, device: torch.device) -> int:
        """Samples that fit beside a few rows of every walk.

        Raises:
            ConfigError: one row of one sample exceeds an explicit budget.
        """
        limit = default_budget(device) if budget is None else budget
        outside = outside_bytes(self.program, self.steps, 1)
        one = max((row_bytes(walk, 1) for walk in self.walks), default=0.0)
        if budget is not None and outside + one > budget:
            raise too_small(int(outside + one), budget)
        several = max(
            (row_bytes(walk, 1) * min(walk.rows, _ROWS_AT_ONCE) for walk in self.walks), default=0.0
        )
        return max(1, int(limit / max(outside + several, 1)))

    def fits_whole(self, inputs: Sequence[Any], budget: int | None) -> bool:
        """Whether all samples and rows go through at once, and none are worth leaving out."""
        if any(walk.tighten is not None for walk in self.walks):
            return False
        limit = default_budget(device_of(inputs)) if budget is None else budget
        return peak_bytes(self.program, batch_size(self.program, self._by_name(inputs))) <= limit

    def run_portions(
        self, inputs: Sequence[Any], budget: int | None = None, usage: Usage | None = None
    ) -> tuple[Any, ...]:
        """`run` on as many samples at a time as the budget takes."""
        usage = usage or Usage()
        batch = batch_size(self.program, self._by_name(inputs))
        samples = self.samples_within(budget, device_of(inputs))
        if samples >= batch or not separable(self.program, inputs):
            usage.samples = batch
            return self.run(inputs, budget, usage)
        usage.samples = samples
        parts: list[tuple[Any, ...]] = []
        for start in range(0, batch, samples):
            at = slice(start, start + samples)
            part = [cut(v, x, at) for v, x in zip(self.program.inputs, inputs, strict=True)]
            parts.append(self.run(part, budget, usage))
        return tuple(
            join(value, outputs)
            for value, outputs in zip(self.program.outputs, zip(*parts, strict=True), strict=True)
        )

    def _by_name(self, inputs: Sequence[Any]) -> dict[str, Any]:
        return {str(v): given for v, given in zip(self.program.inputs, inputs, strict=True)}

    def run(
        self,
        inputs: Sequence[Any],
        budget: int | None = None,
        usage: Usage | None = None,
        seen: dict[str, Any] | None = None,
    ) -> tuple[Any, ...]:
        """The program's outputs.

        Args:
            inputs: one per program input.
            budget: bytes that bounds may take beside inputs, weights and outputs.
            usage: filled with what was done.
            seen: values to hand out, by their text; filled in.
        """
        run = _Run(self, inputs, budget, usage or Usage())
        for key in seen or ():
            if key in run.values:
                seen[key] = run.values[key]  # type: ignore[index]
        for index, step in enumerate(self.steps):
            if isinstance(step, Walk):
                run.values[str(step.result)] = run.walk(step)
            else:
                run.values[str(step.result)] = run_node(step, run.values, run.sizes)
            if seen is not None and str(step.result) in seen:
                seen[str(step.result)] = run.values[str(step.result)]
            for key in self._dies.get(index, ()):
                run.values.pop(key, None)
        return tuple(run.values[str(output)] for output in self.program.outputs)


def _deaths(program: Program, steps: Sequence[Step]) -> dict[int, list[str]]:
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        last[str(step.result)] = index
        last.update((str(value), index) for value in step.inputs)
    found: dict[int, list[str]] = {}
    kept = set(map(str, program.outputs))
    for key, index in last.items():
        if key not in kept:
            found.setdefault(index, []).append(key)
    return found


class _Run:
    """One run: values that live, and how rows are portioned."""

    def __init__(
        self, runner: RowRunner, inputs: Sequence[Any], budget: int | None, usage: Usage
    ) -> None:
        program = runner.program
        self.runner, self.usage = runner, usage
        self.values: dict[str, Any] = runner._by_name(inputs)
        self.values.update((str(p), runner.lookup(p.name)) for p in program.params)
        self.sizes = DimSizes(program, runner._by_name(inputs))
        self.batch = batch_size(program, self.values)
        total = default_budget(device_of(inputs)) if budget is None else budget
        self.room = max(total - outside_bytes(program, runner.steps, self.batch), total // 4)

    def walk(self, walk: Walk) -> Interval:
        """Bounds of a value: all its elements, or those that are worth it."""
        if walk.tighten is not None:
            return self._tightened(walk)
        shape = tuple(self.sizes.resolve(walk.assemble.attrs["shape"]))
        ends = self._ends(walk, walk.rows, lambda start, stop: torch.arange(start, stop))
        lower = elements(ends[0], walk.batch_dim, shape)
        if ends[1] is None:
            return Interval(lower, torch.full_like(lower, torch.inf))
        return Interval(lower, elements(ends[1], walk.batch_dim, shape))

    def _tightened(self, walk: Walk) -> Interval:
        assert walk.tighten is not None
        old: Interval = self.values[str(walk.tighten.inputs[0])]
        kinks: Any = walk.tighten.attrs["kinks"]
        dim = walk.batch_dim
        lower, upper = (_by_sample(end, dim) for end in (old.lower, old.upper))
        open_ = _by_sample(crosses(old, kinks), dim)
        units, real = first_true(open_)
        if not units.shape[1]:
            self._note(walk, 0, 0)
            return old
        got = self._ends(walk, units.shape[1], lambda start, stop: units[:, start:stop])
        assert got[1] is not None
        before = Interval(lower.gather(1, units), upper.gather(1, units))
        both = meet(before, Interval(got[0].T, got[1].T))
        # What fills up the shorter lists goes to a column of its own, without a gradient.
        columns = torch.where(real, units, lower.shape[1])
        ends = (
            torch.cat([full, full[:, :1]], 1).scatter(1, columns, new)[:, :-1]
            for full, new in ((lower, both.lower), (upper, both.upper))
        )
        return Interval(*(_from_samples(end, dim, old.lower.shape) for end in ends))

    def _ends(
        self, walk: Walk, count: int, units_of: Callable[[int, int], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Lower and upper ends, `[rows, batch]`, of the units that a range of rows stands for."""
        size = int(max(1, min(count, self.room // max(row_bytes(walk, self.batch), 1.0))))
        # Equal portions: a short last one would cost nearly as much as a full one.
        size = -(-count // -(-count // size))
        self._note(walk, count, size)
        # A checkpoint walks again when the gradient is taken, and by then values are gone.
        given = {str(value): self.values[str(value)] for value in walk.inputs}
        lowers, uppers = [], []
        for start in range(0, count, size):
            units = units_of(start, min(start + size, count))
            if size < count and torch.is_grad_enabled():
                total = checkpoint(self._walk_units, walk, units, given, use_reentrant=False)
            else:
                total = self._walk_units(walk, units, given)
            rows = min(size, count - start)
            lowers.append(total[:rows])
            if walk.signed:
                uppers.append(-total[rows:])
        lower = lowers[0] if len(lowers) == 1 else torch.cat(lowers)
        if not walk.signed:
            return lower, None
        return lower, uppers[0] if len(uppers) == 1 else torch.cat(uppers)

    def _note(self, walk: Walk, rows: int, chunk: int) -> None:
        name = str(walk.result)
        self.usage.rows[name] = self.usage.rows.get(name, 0) + rows * self.batch
        self.usage.of[name] = self.usage.of.get(name, 0) + walk.rows * self.batch
        self.usage.chunk[name] = chunk

    def _walk_units(self, walk: Walk, units: Tensor, values: dict[str, Any]) -> Tensor:
        """Least values `[rows, batch]` for units `[rows]`, or `[batch, rows]` each its own."""
        return _Portion(self, walk, units, values).run()


class _Portion:
    """One portion of rows on its way back.

    Until forms differ between samples, one row stands for all of them. Units that differ
    between samples are therefore walked as one set and dealt out to the samples only there.
    """

    def __init__(self, run: _Run, walk: Walk, units: Tensor, values: dict[str, Any]) -> None:
        self.run_, self.walk, self.values = run, walk, values
        like = tensor_of(values[str(walk.seed.inputs[0])])
        units = units.to(like.device)
        self.like = like
        self.deal: Tensor | None = None
        if units.dim() == 2 and is_shared(walk.seed.result, dynamic=run.runner.dynamic):
            units, places = torch.unique(units, return_inverse=True)
            self.deal = places.T
        self.units = units
        self.forms: dict[str, LinearForm] = {}
        self.uses = _uses(walk)

    def run(self) -> Tensor:
        """Walk the rows back to the regions."""
        nodes = self._start()
        for node in nodes:
            together = isinstance(node.result.type, FormType) and self._shared(node.result)
            operands = [self._operand(node, value, together) for value in node.inputs]
            attrs = {k: self.run_.sizes.resolve(v) for k, v in node.attrs.items()}
            self.forms[str(node.result)] = bounded.rule(node.op)(*operands, **attrs)
        total = self._least()
        total = total.reshape(len(total), -1)
        return total.expand(-1, self.run_.batch) if total.shape[1] == 1 else total

    def _least(self) -> Tensor:
        """Least values of the forms that reached the regions."""
        node = self.walk.assemble
        dims: Any = node.attrs["dims"]
        norms: Any = node.attrs.get("norms", ())
        ends: list[Any] = []
        left = iter(dims)
        for value in node.inputs:
            if isinstance(value.type, FormType):
                ends.append(self._dealt(value, self._take(value), _missing(value, next(left))))
            else:
                ends.append(self.values[str(value)])
        return least(ends, dims, norms, samples=self.walk.batch_dim is not None)

    def _start(self) -> tuple[Node, ...]:
        """Make the first forms; the nodes that are left."""
        walk, key = self.walk, str(self.walk.seed.result)
        first = walk.nodes[0] if walk.nodes else None
        if first is not None and self.uses[key] == 1 and key in map(str, first.inputs):
            made = self._unit_rows(first)
            if made is not None:
                self.forms[str(first.result)] = made
                return walk.nodes[1:]
        attrs = {k: self.run_.sizes.resolve(v) for k, v in walk.seed.attrs.items()}
        self.forms[key] = one_hot_rows(self.like, units=self.units, **attrs)
        return walk.nodes

    def _unit_rows(self, first: Node) -> LinearForm | None:
        """The form behind the first op, where that op can make it without one-hot rows."""
        spec = get(first.op.removeprefix(BACKWARD))
        shared = self._shared(self.walk.seed.result) and self._shared(first.result)
        if spec is None or spec.unit_rows is None or self.units.dim() != 1 or not shared:
            return None
        others = [self.values[str(value)] for value in first.inputs[1:]]
        attrs = {key: self.run_.sizes.resolve(value) for key, value in first.attrs.items()}
        made: LinearForm | None = spec.unit_rows(self.units, *others, **attrs)
        return made

    def _shared(self, value: Value) -> bool:
        return is_shared(value, dynamic=self.run_.runner.dynamic)

    def _take(self, value: Value) -> LinearForm:
        """A form, forgotten at its last use."""
        key = str(value)
        self.uses[key] -= 1
        return self.forms.pop(key) if self.uses[key] == 0 else self.forms[key]

    def _operand(self, node: Node, value: Value, together: bool) -> Any:
        if not isinstance(value.type, FormType):
            return self.values[str(value)]
        form = self._take(value)
        if together:
            return form
        dims: Any = node.attrs.get("sample_dims")
        if dims is not None:
            return self._dealt(value, form, _missing(value, dims))
        varying = [i for i, entry in enumerate(node.result.type.shape) if isinstance(entry, Dim)]
        return self._dealt(value, form, varying[0] if varying else None)

    def _dealt(self, value: Value, form: LinearForm, batch_dim: int | None) -> LinearForm:
        """A form shared by the samples, as each sample's own rows."""
        if self.deal is None or batch_dim is None or not self._shared(value):
            return form
        return spread_rows(form, self.deal, len(self.units), batch_dim)


def _missing(value: Value, dims: tuple[int, ...]) -> int | None:
    """The batch dimension of a coefficient, given those that belong to a sample."""
    left = [dim for dim in range(1, len(value.type.shape)) if dim not in dims]
    return left[0] if left else None


def _uses(walk: Walk) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in (*walk.nodes, walk.assemble):
        for value in node.inputs:
            if isinstance(value.type, FormType):
                found[str(value)] = found.get(str(value), 0) + 1
    return found


def first_true(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of the true entries of `[batch, n]`, and which of them are real.

    Both `[batch, most in a row]`; shorter lists are filled up by repeating their first entry.
    """
    count = mask.sum(1)
    most = int(count.max()) if mask.numel() else 0
    order = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    real = torch.arange(most, device=mask.device) < count.unsqueeze(1)
    return torch.where(real, order, order[:, :1]) if most else order, real


def _by_sample(x: Tensor, batch_dim: int | None) -> Tensor:
    if batch_dim is None:
        return x.reshape(1, -1)
    moved = x.movedim(batch_dim, 0)
    # A sample may be a single number.
    return moved.flatten(1) if moved.dim() > 1 else moved.unsqueeze(1)


def _from_samples(x: Tensor, batch_dim: int | None, shape: torch.Size) -> Tensor:
    if batch_dim is None:
        return x.reshape(shape)
    features = [size for dim, size in enumerate(shape) if dim != batch_dim]
    return x.reshape((-1, *features)).movedim(0, batch_dim)
