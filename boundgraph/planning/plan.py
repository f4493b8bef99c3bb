"""A plan: which bound each intermediate value gets, and in which direction bounds travel.

Any plan is sound. Intervals are bounds, backward and symbolic bounds are only ever
intersected with them, and interval rules are monotone: so no plan is looser than `ibp` either.
What a plan decides is time and memory.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace

import networkx as nx

from boundgraph.ir.program import Node, Program, Value
from boundgraph.planning.cost import CPU, Cost, Costs, Machine, total
from boundgraph.planning.windows import window_entries

INTERVAL, FORWARD, BACKWARD = "interval", "forward", "backward"
WINDOWS = "forward on windows"
SYMBOLIC = "symbolic"
DEFAULT_SECONDS = 10.0
DEFAULT_BYTES = 1 << 30
_SCHEDULES = {"ibp": INTERVAL, "mix": FORWARD, "symbolic": FORWARD}


@dataclass(frozen=True)
class Budget:
    """What one call of a program may take, by estimate.

    Args:
        seconds: nominal time of a call for the planned batch.
        memory: bytes of bounds beside inputs and weights; calls are portioned to fit.
    """

    seconds: float = DEFAULT_SECONDS
    memory: int = DEFAULT_BYTES


@dataclass(frozen=True)
class Task:
    """A value that needs bounds, and the bounds it gets.

    Args:
        value: its text in the concrete program.
        readers: ops that read its interval; empty for an output.
        choice: `"interval"`, `"backward"` (and the interval) or `"symbolic"` (likewise).
        rows: elements of a sample, each of which a backward bound walks back.
        cost: of the choice beyond the interval track; of a backward bound with all rows walked.
        backward: what a backward bound costs or would cost; None where there is none, or it
            could not be tighter.
        memory: bytes that one of its rows takes.
    """

    value: str
    readers: tuple[str, ...]
    choice: str
    rows: int
    cost: Cost
    backward: Cost | None
    memory: int


@dataclass(frozen=True)
class Option:
    """A whole that was considered.

    Args:
        name: `"interval"`, `"forward"`, `"forward on windows"`, `"backward"` (the outputs alone)
            or `"backward, all values"`.
        seconds, memory, flops: estimated.
        fits: within the budget.
    """

    name: str
    seconds: float
    memory: int
    flops: int
    fits: bool = True

    @classmethod
    def of(cls, name: str, plan: Plan, fits: bool = True) -> Option:
        """A whole as a plan has it."""
        return cls(name, plan.seconds, plan.memory, plan.cost.flops, fits)


@dataclass(frozen=True)
class Plan:
    """How the bounds of a program are computed, and what that should cost.

    Args:
        schedule: `"interval"`, `"forward"` (symbolic intervals, intersected with intervals),
            `"forward on windows"` (whose generators of images lie on windows) or `"backward"`
            (linear forms from the values that `tasks` names).
        tasks: the values that need bounds, in the program's order.
        base: the interval track, or the symbolic values.
        memory: estimated peak in bytes, of the smallest portion that a call can take.
        batch: samples that it was made for.
        machine: whose nominal speeds turn costs into seconds.
        budget: None where nothing was chosen.
        options: what else was considered.
    """

    schedule: str
    tasks: tuple[Task, ...]
    base: Cost
    memory: int
    batch: int = 1
    machine: Machine = CPU
    budget: Budget | None = None
    options: tuple[Option, ...] = ()

    @property
    def cost(self) -> Cost:
        """Of a call."""
        return self.base + total(task.cost for task in self.tasks)

    @property
    def seconds(self) -> float:
        """Nominal time of a call."""
        return self.machine.seconds(self.cost)

    @property
    def tightened(self) -> tuple[str, ...]:
        """Names of the intermediate values that get backward bounds."""
        return tuple(
            task.value[1:] for task in self.tasks if task.choice == BACKWARD and task.readers
        )

    def __str__(self) -> str:
        head = f"plan: {self.schedule}, batch {self.batch}, about {_seconds(self.seconds)}"
        if self.budget is not None:
            head += f" of {_seconds(self.budget.seconds)}, {_bytes(self.memory)}"
            head += f" of {_bytes(self.budget.memory)}"
        rows = [("value", "read by", "bounds", "rows", "flop", "traffic")]
        for task in self.tasks:
            rows.append(
                (
                    task.value,
                    ", ".join(task.readers) or "return",
                    task.choice,
                    str(task.rows),
                    str(task.cost.flops),
                    str(task.cost.traffic),
                )
            )
        base = "symbolic values" if self.schedule in (FORWARD, WINDOWS) else "intervals"
        rows.append((base, "", "", "", str(self.base.flops), str(self.base.traffic)))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  "
            + "  ".join(
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        considered = [
            f"  {option.name}: {_seconds(option.seconds)}, {_bytes(option.memory)}"
            + ("" if option.fits else ", over the budget")
            for option in self.options
        ]
        return "\n".join([head, *lines, *(["considered:", *considered] if considered else [])])


@dataclass(frozen=True)
class Planned:
    """What is to be planned.

    Args:
        bounded: names of the inputs that carry a region.
        batch: samples of a call.
        machine: nominal speeds.
        lower_only: outputs are bounded below only.
        sound: bounds account for rounding; there is no forward schedule then.
        balls: some region is a p-ball, over which intervals are not exact anywhere.
        intervals: positions of outputs whose interval is wanted, without a walk.
        symbolic: plan the method `symbolic`: no interval track, and backward walks of its own.
    """

    bounded: tuple[str, ...]
    batch: int = 1
    machine: Machine = CPU
    lower_only: bool = False
    sound: bool = False
    balls: bool = False
    intervals: tuple[int, ...] = ()
    symbolic: bool = False


def make_plan(program: Program, what: Planned, budget: Budget | None = None) -> Plan:
    """Choose bounds within a budget. Deterministic: types, options and budget decide.

    The tightest choice that fits is taken, in this order: backward bounds of every value;
    the forward schedule, which bounds every value, too, at once, with backward bounds of the
    outputs beside it, or alone where those would not fit by themselves; backward bounds of the
    outputs and of as many intermediate values as the time allows, cheapest first; intervals.
    So where there is room for `crown-ibp`, a forward plan is never looser than it.

    Args:
        program: a concrete program, as the relaxation will get it.
        what: its regions and the batch.
        budget: by default ten seconds and 1 GiB.
    """
    return _Planner(program, what, budget or Budget()).choose()


def fixed_plan(program: Program, what: Planned, method: str) -> Plan:
    """The plan that a fixed method amounts to."""
    planner = _Planner(program, replace(what, symbolic=method == "symbolic"), None)
    schedule = _SCHEDULES.get(method, BACKWARD)
    if schedule == FORWARD:
        return planner.forwards()[-1]
    if schedule == INTERVAL:
        return planner.intervals()
    return planner.backward(planner.candidates if method != "crown-ibp" else ())


def cheaper_schedule(program: Program, what: Planned) -> Plan:
    """The cheapest of the schedules of `symbolic`, which give the same bounds.

    Forward wherever backward would not be the same: an op that symbols pass, but forms do not.
    """
    planner = _Planner(program, replace(what, symbolic=True), None)
    plans = planner.forwards()
    if planner.costs.batch_dims is not None and planner.costs.walks_like_symbols():
        plans = [planner.backward(planner.candidates), *plans]
    options = tuple(Option.of(plan.schedule, plan) for plan in plans)
    return replace(min(plans, key=lambda plan: plan.seconds), options=options)


class _Planner:
    """The parts that plans are made of."""

    def __init__(self, program: Program, what: Planned, budget: Budget | None) -> None:
        self.program, self.what, self.budget = program, what, budget
        self.costs = Costs(
            program, what.bounded, what.batch, sound=what.sound, symbolic=what.symbolic
        )
        needed = self.costs.needed()
        self.outputs = [
            value for value in dict.fromkeys(program.outputs) if str(value) in self.costs.graph
        ]
        self.readers = {key: tuple(n.op for n in nodes) for key, nodes in needed.items()}
        self.values = [self.costs.values[key] for key in self.costs.nodes if key in needed]
        self.candidates = tuple(str(v) for v in self.values if self._worth_walking(v))
        self.track = self._track(self.costs.graph)
        self.track_bytes = self.costs.interval_bytes(1)

    def _track(self, keys: Container[str]) -> Cost:
        """The interval track of some values."""
        return total(
            self.costs.interval(node) for key, node in self.costs.nodes.items() if key in keys
        )

    def choose(self) -> Plan:
        budget = self.budget
        assert budget is not None
        intervals = self.intervals()
        if self.costs.batch_dims is None:
            # Neither symbols nor forms of one sample can be told from those of another.
            only = Option.of(INTERVAL, intervals, self._fits(intervals))
            return replace(intervals, budget=budget, options=(only,))
        forwards = [] if self.what.sound else self.forwards()
        outputs, everything = self.backward(()), self.backward(self.candidates)
        considered = [
            ("interval", intervals),
            *((plan.schedule, plan) for plan in forwards),
            ("backward", outputs),
            ("backward, all values", everything),
        ]
        options = tuple(Option.of(name, plan, self._fits(plan)) for name, plan in considered)
        forward = min(forwards, key=lambda plan: plan.seconds, default=None)
        chosen = self._best(intervals, forward, outputs, everything)
        return replace(chosen, budget=budget, options=options)

    def _best(self, intervals: Plan, forward: Plan | None, outputs: Plan, everything: Plan) -> Plan:
        if self._fits(everything):
            return everything
        if forward is not None and self._fits(forward):
            both = self._with_outputs(forward, outputs)
            if self._fits(both):
                return both
            if not self._fits(outputs):
                return forward
        if not self._fits(outputs):
            return intervals
        return self._as_many_as_fit(outputs)

    def _with_outputs(self, forward: Plan, outputs: Plan) -> Plan:
        """The forward schedule, and backward bounds of the outputs over intervals beside it."""
        walked = {task.value: task for task in outputs.tasks if task.choice == BACKWARD}
        inner = [task for task in forward.tasks if task.readers]
        ends = [walked.get(t.value, t) for t in forward.tasks if not t.readers]
        base, memory = forward.base + outputs.base, max(forward.memory, outputs.memory)
        return replace(forward, tasks=(*inner, *ends), base=base, memory=memory)

    def _as_many_as_fit(self, plan: Plan) -> Plan:
        """Cheapest first, so that more time never takes a bound away again."""
        walks = {task.value: task.backward for task in plan.tasks if task.backward is not None}

        def seconds(key: str) -> float:
            return self.what.machine.seconds(walks[key])

        order = sorted((key for key in self.candidates if key in walks), key=seconds)
        taken: tuple[str, ...] = ()
        for key in order:
            more = self.backward((*taken, key))
            if not self._fits(more):
                break
            taken, plan = (*taken, key), more
        return plan

    def _fits(self, plan: Plan) -> bool:
        budget = self.budget
        assert budget is not None
        return plan.seconds <= budget.seconds and plan.memory <= budget.memory

    def intervals(self) -> Plan:
        tasks = self._all_by(INTERVAL)
        return self._plan(INTERVAL, tasks, self.track, self.track_bytes)

    def forwards(self) -> list[Plan]:
        """The forward schedule, and on windows where images make that another one."""
        windows = window_entries(self.costs)
        whole = self._forward(FORWARD, self.costs.symbols())
        return [whole] if windows is None else [self._forward(WINDOWS, windows), whole]

    def _forward(self, schedule: str, symbols: dict[str, int]) -> Plan:
        base = total(
            self.costs.symbolic(node, symbols, track=not self.what.symbolic)
            for key, node in self.costs.nodes.items()
            if key in self.costs.graph
        )
        tasks = self._all_by(SYMBOLIC)
        return self._plan(schedule, tasks, base, self.costs.symbolic_bytes(symbols, 1))

    def backward(self, tightened: Iterable[str]) -> Plan:
        chosen = set(tightened)
        tasks = [
            self._task(value, BACKWARD if str(value) in chosen else INTERVAL)
            for value in self.values
        ]
        for value in self.outputs:
            plain = str(value) not in self.costs.nodes or self._only_interval(value)
            tasks.append(self._task(value, INTERVAL if plain else BACKWARD, output=True))
        widest = max((task.memory for task in tasks if task.choice == BACKWARD), default=0)
        track = self.track if self.budget is not None else self._track(self._read())
        return self._plan(BACKWARD, tasks, track, self.track_bytes + widest)

    def _read(self) -> set[str]:
        """Values whose intervals some rule reads, at once or through other intervals."""
        if self.what.symbolic:
            return {key for key, n in self.costs.nodes.items() if self._boxed(key, n)}
        ends = {str(value) for value in self.values}
        ends |= {str(value) for value in self.outputs if self._only_interval(value)}
        ends |= {key for key, n in self.costs.nodes.items() if self._boxed(key, n)}
        return ends.union(*(nx.ancestors(self.costs.graph, key) for key in ends))

    def _boxed(self, key: str, node: Node) -> bool:
        return key in self.costs.graph and not self.costs.walks(node)

    def _all_by(self, choice: str) -> list[Task]:
        inner = [self._task(value, choice) for value in self.values]
        return [*inner, *(self._task(value, choice, output=True) for value in self.outputs)]

    def _only_interval(self, value: Value) -> bool:
        positions = [i for i, output in enumerate(self.program.outputs) if output == value]
        return all(position in self.what.intervals for position in positions)

    def _task(self, value: Value, choice: str, *, output: bool = False) -> Task:
        key = str(value)
        lower_only = output and self.what.lower_only
        backward, memory = None, 0
        if key in self.costs.nodes and (output or key in self.candidates):
            backward = self.costs.walk(value, lower_only=lower_only)
            memory = self.costs.row_bytes(value, 1, lower_only=lower_only)
            backward = replace(backward, kernels=backward.kernels * self._portions(value, memory))
        cost = backward if choice == BACKWARD and backward is not None else Cost()
        readers = () if output else self.readers.get(key, ())
        return Task(key, readers, choice, self.costs.rows(value), cost, backward, memory)

    def _portions(self, value: Value, row: int) -> int:
        """How often a walk starts, so that its rows fit beside the intervals."""
        if self.budget is None:
            return 1
        room = max(self.budget.memory - self.track_bytes, row)
        return -(-self.costs.rows(value) * self.what.batch * row // room)

    def _worth_walking(self, value: Value) -> bool:
        """Intervals are exact up to the first relaxed op, but for what joins on the way."""
        if self.what.symbolic:
            return self.costs.walks(self.costs.nodes[str(value)])
        if self.what.balls:
            return True
        above = nx.ancestors(self.costs.graph, str(value)) | {str(value)}
        nodes = [self.costs.nodes[key] for key in above if key in self.costs.nodes]
        return len(nodes) > 1 or any(self.costs.reads_intervals(node) for node in nodes)

    def _plan(self, schedule: str, tasks: list[Task], base: Cost, memory: int) -> Plan:
        what = self.what
        return Plan(schedule, tuple(tasks), base, memory, what.batch, what.machine, self.budget)


def _seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * scale >= 1 or unit == "µs":
            return f"{value * scale:.3g} {unit}"
    raise AssertionError


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"
