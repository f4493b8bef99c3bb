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
from boundgraph.errors import OutOfTimeError
from boundgraph.ir.program import Program
from boundgraph.ir.types import Dim
from boundgraph.ops._dtypes import to_torch
from boundgraph.ops.bounded import crosses, elements
from boundgraph.runtime.interpret import DimSizes, Lookup, run_node
from boundgraph.runtime.memory import (
    default_budget,
    outside_bytes,
    peak_bytes,
    row_bytes,
    too_small,
)
from boundgraph.runtime.portion import Portion
from boundgraph.runtime.shared_lines import SharedLines
from boundgraph.runtime.slices import (
    batch_size,
    by_sample,
    cut,
    device_of,
    first_true,
    from_samples,
    join,
    separable,
    tensor_of,
)
from boundgraph.runtime.slopes import Slopes, ascend
from boundgraph.runtime.walks import Step, Walk, split
from boundgraph.runtime.window_plan import WindowPlan, plan_windows
from boundgraph.runtime.windows import WindowWalk

TimeLeft = Callable[[], float]
# So many rows should fit beside each other before samples are put off for later.
_ROWS_AT_ONCE = 16
# A search keeps the forms of a walk until the gradient is taken, and slopes of their size.
_KEPT = 16
# Bytes of one form that a CPU walks at a time: passes over them find them in its cache.
# Measured on the small MNIST network: 0.18 s, against 0.30 s with all rows at once. A walk over
# windows has many small steps for each portion: on the large network 3.7 s with twice as much
# against 4.4 s, on the small one no difference beyond noise.
_CACHED, _CACHED_WINDOWS = 4 << 20, 8 << 20


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


@dataclass(frozen=True)
class RowSearch:
    """A search for lower slopes, walk by walk: inner bounds first, then outputs over them.

    Args:
        names: inputs of the program that stand for free slopes.
        inner: steps of rows that tighten a relaxed op's operand.
        outer: steps of rows of an output.
        size: of the first step; slopes live in [0, 1].
        undecided: which elements of an output are worth a search, from its bounds.
    """

    names: frozenset[str]
    inner: int
    outer: int
    size: float
    undecided: Callable[[Interval], Tensor]


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
        self._plans: dict[str, WindowPlan | None] = {}

    def plan(self, walk: Walk) -> WindowPlan | None:
        """Windows of a walk, None where it needs whole values."""
        key = str(walk.result)
        if key not in self._plans:
            self._plans[key] = plan_windows(walk)
        return self._plans[key]

    def samples_within(self, budget: int | None, device: torch.device) -> int:
        """Samples that fit beside a few rows of every walk.

        Raises:
            MemoryBudgetError: one row of one sample exceeds an explicit budget.
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
        self,
        inputs: Sequence[Any],
        budget: int | None = None,
        usage: Usage | None = None,
        time_left: TimeLeft | None = None,
    ) -> tuple[Any, ...]:
        """`run` on as many samples at a time as the budget takes."""
        usage = usage or Usage()
        batch = batch_size(self.program, self._by_name(inputs))
        samples = self.samples_within(budget, device_of(inputs))
        if samples >= batch or not separable(self.program, inputs):
            usage.samples = batch
            return self.run(inputs, budget, usage, time_left=time_left)
        usage.samples = samples
        parts: list[tuple[Any, ...]] = []
        for start in range(0, batch, samples):
            at = slice(start, start + samples)
            part = [cut(v, x, at) for v, x in zip(self.program.inputs, inputs, strict=True)]
            parts.append(self.run(part, budget, usage, time_left=time_left))
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
        search: RowSearch | None = None,
        time_left: TimeLeft | None = None,
    ) -> tuple[Any, ...]:
        """The program's outputs.

        Args:
            inputs: one per program input.
            budget: bytes that bounds may take beside inputs, weights and outputs.
            usage: filled with what was done.
            search: free slopes of each row are searched for; nothing has a gradient then.
            time_left: seconds, asked between portions; no limit where None.

        Raises:
            OutOfTimeError: no time is left.
        """
        run = _Run(self, inputs, budget, usage or Usage(), search, time_left)
        for index, step in enumerate(self.steps):
            run.check_time()
            if isinstance(step, Walk):
                run.values[str(step.result)] = run.walk(step)
            else:
                run.values[str(step.result)] = run_node(step, run.values, run.sizes)
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
        self,
        runner: RowRunner,
        inputs: Sequence[Any],
        budget: int | None,
        usage: Usage,
        search: RowSearch | None = None,
        time_left: TimeLeft | None = None,
    ) -> None:
        program = runner.program
        self.runner, self.usage, self.search = runner, usage, search
        self.lines = SharedLines(program.nodes)
        self.time_left = time_left
        self.values: dict[str, Any] = runner._by_name(inputs)
        self.values.update((str(p), runner.lookup(p.name)) for p in program.params)
        self.sizes = DimSizes(program, runner._by_name(inputs))
        self.batch = batch_size(program, self.values)
        self.like = tensor_of(next(value for value in inputs if value is not None))
        total = default_budget(device_of(inputs)) if budget is None else budget
        self.room = max(total - outside_bytes(program, runner.steps, self.batch), total // 4)

    def check_time(self) -> None:
        if not self._has_time():
            raise OutOfTimeError("the time for bounds is over")

    def _has_time(self) -> bool:
        return self.time_left is None or self.time_left() > 0

    def walk(self, walk: Walk) -> Interval:
        """Bounds of a value: all its elements, or those that are worth it."""
        if walk.tighten is not None:
            old: Interval = self.values[str(walk.tighten.inputs[0])]
            kinks: Any = walk.tighten.attrs["kinks"]
            steps = 0 if self.search is None else self.search.inner
            return self._improved(walk, old, crosses(old, kinks), steps)
        search, output = self.search, walk.result in self.runner.program.outputs
        found = self._all_rows(walk, 0 if search is None or output else search.inner)
        if search is None or not output or not search.outer:
            return found
        return self._improved(walk, found, search.undecided(found), search.outer)

    def _all_rows(self, walk: Walk, steps: int) -> Interval:
        """Bounds of all elements of a value."""
        shape = tuple(self.sizes.resolve(walk.assemble.attrs["shape"]))
        if self.runner.plan(walk) is not None and not torch.is_grad_enabled():
            high = self.like.new_full(shape, torch.inf, dtype=to_torch(walk.result.type.dtype))
            return self._improved(walk, Interval(-high, high), torch.isinf(high), steps)
        ends = self._ends(walk, walk.rows, lambda start, stop: torch.arange(start, stop), steps)
        lower = elements(ends[0], walk.batch_dim, shape)
        if ends[1] is None:
            return Interval(lower, torch.full_like(lower, torch.inf))
        return Interval(lower, elements(ends[1], walk.batch_dim, shape))

    def _improved(self, walk: Walk, old: Interval, wanted: Tensor, steps: int) -> Interval:
        """An interval met with backward bounds of the wanted elements."""
        dim = walk.batch_dim
        lower, upper = (by_sample(end, dim) for end in (old.lower, old.upper))
        open_ = by_sample(wanted, dim)
        if not bool(open_.any()):
            self._note(walk, 0, 0)
            return old
        plan = self.runner.plan(walk)
        if plan is not None and not torch.is_grad_enabled():
            ends = self._windowed(walk, plan, lower, upper, open_, steps)
        else:
            ends = self._listed(walk, lower, upper, open_, steps)
        return Interval(*(from_samples(end, dim, old.lower.shape) for end in ends))

    def _listed(
        self, walk: Walk, lower: Tensor, upper: Tensor, open_: Tensor, steps: int
    ) -> tuple[Tensor, Tensor]:
        """`[batch, elements]` ends, from as many rows in each sample as the most that one has."""
        units, real = first_true(open_)
        got = self._ends(walk, units.shape[1], lambda start, stop: units[:, start:stop], steps)
        before = Interval(lower.gather(1, units), upper.gather(1, units))
        above = before.upper if got[1] is None else got[1].T
        both = meet(before, Interval(got[0].T, above))
        # What fills up the shorter lists goes to a column of its own, without a gradient.
        columns = torch.where(real, units, lower.shape[1])

        def placed(full: Tensor, new: Tensor) -> Tensor:
            return torch.cat([full, full[:, :1]], 1).scatter(1, columns, new)[:, :-1]

        return placed(lower, both.lower), placed(upper, both.upper)

    def _windowed(
        self,
        walk: Walk,
        plan: WindowPlan,
        lower: Tensor,
        upper: Tensor,
        open_: Tensor,
        steps: int,
    ) -> tuple[Tensor, Tensor]:
        """The same from the open elements alone, each with its window."""
        sample, unit = open_.nonzero(as_tuple=True)
        # Slopes are all that a search takes gradients of.
        given = {str(v): _detached(self.values[str(v)]) for v in walk.inputs}
        shared = WindowWalk(plan, walk, given, self.sizes)
        one = plan.elements * 2 * lower.element_size()
        size = self._portion(len(unit), one * (_KEPT if steps else 2), one, _CACHED_WINDOWS, lower)
        self._note(walk, len(unit) / len(lower), size)
        parts = []
        for start in range(0, len(unit), size):
            at = slice(start, start + size)
            parts.append(self._climbed(shared.units(sample[at], unit[at]).run, steps))
        total = torch.cat(parts, 1)
        before = Interval(lower[sample, unit], upper[sample, unit])
        above = -total[1] if walk.signed else before.upper
        both = meet(before, Interval(total[0], above))
        place = (sample, unit)
        return lower.index_put(place, both.lower), upper.index_put(place, both.upper)

    def _portion(self, count: int, bytes_: float, form: float, cached: int, like: Tensor) -> int:
        """Rows at a time, by the memory and by what its form takes of the cache."""
        size = min(count, self.room // max(bytes_, 1.0))
        # With a gradient every portion is walked twice.
        if like.device.type == "cpu" and not torch.is_grad_enabled():
            size = min(size, cached // max(form, 1.0))
        return int(max(1, size))

    def _climbed(self, evaluate: Callable[[Slopes | None], Tensor], steps: int) -> Tensor:
        """Least values of a portion of rows, after some steps of their own slopes."""
        self.check_time()
        if self.search is None or not steps:
            return evaluate(None)
        return ascend(evaluate, self.search.names, steps, self.search.size, self._has_time)

    def _ends(
        self, walk: Walk, count: int, units_of: Callable[[int, int], Tensor], steps: int
    ) -> tuple[Tensor, Tensor | None]:
        """Lower and upper ends, `[rows, batch]`, of the units that a range of rows stands for."""
        one = row_bytes(walk, self.batch) * (_KEPT / 2 if steps else 1)
        size = self._portion(count, one, row_bytes(walk, self.batch) / 3, _CACHED, self.like)
        # Equal portions: a short last one would cost nearly as much as a full one.
        size = -(-count // -(-count // size))
        self._note(walk, count, size)
        # A checkpoint walks again when the gradient is taken, and by then values are gone.
        given = {str(value): self.values[str(value)] for value in walk.inputs}
        if steps:
            given = {key: _detached(value) for key, value in given.items()}
        # Detached values are this walk's own, and a checkpoint makes everything again.
        lines = self.lines.apart() if steps else self.lines
        shared = None if torch.is_grad_enabled() and not steps else lines
        if shared is not None and size < count:
            shared = shared.for_portions()
        lowers, uppers = [], []
        for start in range(0, count, size):
            units = units_of(start, min(start + size, count))
            if size < count and torch.is_grad_enabled():
                total = checkpoint(self._walk_units, walk, units, given, 0, use_reentrant=False)
            else:
                total = self._walk_units(walk, units, given, steps, shared)
            rows = min(size, count - start)
            lowers.append(total[:rows])
            if walk.signed:
                uppers.append(-total[rows:])
        lower = lowers[0] if len(lowers) == 1 else torch.cat(lowers)
        if not walk.signed:
            return lower, None
        return lower, uppers[0] if len(uppers) == 1 else torch.cat(uppers)

    def _note(self, walk: Walk, rows: float, chunk: int) -> None:
        name = str(walk.result)
        done = self.usage.rows.get(name, 0) + round(rows * self.batch)
        self.usage.rows[name] = done
        self.usage.of[name] = self.usage.of.get(name, 0) + walk.rows * self.batch
        self.usage.chunk[name] = chunk

    def _walk_units(
        self,
        walk: Walk,
        units: Tensor,
        values: dict[str, Any],
        steps: int,
        lines: SharedLines | None = None,
    ) -> Tensor:
        """Least values `[rows, batch]` for units `[rows]`, or `[batch, rows]` each its own."""
        portion = Portion(
            walk,
            units,
            values,
            self.sizes,
            batch=self.batch,
            dynamic=self.runner.dynamic,
            lines=lines,
        )
        return self._climbed(portion.run, steps)


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return value.map(Tensor.detach) if type(value) is Interval else value
