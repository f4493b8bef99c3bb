"""One bound method on the open rows of one sample, within time and memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from boundgraph.compiler import compile
from boundgraph.domains.interval import Interval
from boundgraph.domains.regions import Region
from boundgraph.domains.specs import LinearSpec
from boundgraph.domains.symbolic import Symbolic
from boundgraph.errors import InternalError, MemoryBudgetError, OutOfTimeError
from boundgraph.ir.program import Program
from boundgraph.ir.types import Dim, IntervalType, evaluate_shape
from boundgraph.options import for_certifying
from boundgraph.parameter_regions import ParameterRegions
from boundgraph.runtime.module import BoundProgram
from boundgraph.runtime.walks import TIGHTEN
from boundgraph.verification.spec import Clauses
from boundgraph.verification.verdict import Cause

DEFAULT_MEMORY = 2 << 30
KEPT_PROGRAMS = 64
# Methods that optimise, and their evaluations (a gradient costs about two more).
SEARCHES, REPEATS = ("alpha-crown",), 60
# What a run costs beside its arithmetic; keeps a tiny first run from foretelling hours.
_OVERHEAD = 0.05
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")


@dataclass
class Stages:
    """Compiled programs and what runs of them cost, shared by the samples of one call.

    Args:
        model: the user's.
        regions: one sample's, for their shapes.
        max_memory: bytes that bounds may take.
        rounding: of the bounds.
        accumulate: of sound intervals.
        parameters: regions of parameters, which proofs hold for.
    """

    model: nn.Module
    regions: tuple[Region | Tensor, ...]
    max_memory: int
    rounding: str = "nearest"
    accumulate: str = "float64"
    parameters: ParameterRegions = field(default_factory=dict)
    programs: dict[tuple[str, bytes], BoundProgram] = field(default_factory=dict)
    compile_seconds: float = math.inf
    seconds_per_element: float = 0.0

    def begin(self, regions: tuple[Region | Tensor, ...]) -> None:
        """Go on to the next sample."""
        self.regions = regions
        if len(self.programs) > KEPT_PROGRAMS:
            self.programs.clear()

    def program(self, method: str, clauses: Clauses, rows: Sequence[int]) -> BoundProgram:
        """The program that bounds these rows, compiled once for each set of them."""
        matrix, offset = clauses.matrix[list(rows)], clauses.offset[list(rows)]
        key = (method, matrix.cpu().numpy().tobytes() + offset.cpu().numpy().tobytes())
        if key not in self.programs:
            started = time.perf_counter()
            first = not self.programs
            options = for_certifying(method, self.rounding, self.accumulate)
            self.programs[key] = compile(
                self.model,
                *self.regions,
                spec=LinearSpec(matrix, offset),
                parameters=self.parameters,
                lower_only=method not in ("ibp", "symbolic", "mix"),
                **options,
            )
            if not first:
                # The first one also loads what tracing needs.
                self.compile_seconds = min(self.compile_seconds, time.perf_counter() - started)
        return self.programs[key]


@dataclass
class Outcome:
    """What a method came to.

    Args:
        lower: `[rows]` float64 of the whole problem; -inf where the method gave nothing.
        complete: every row asked for was bounded.
        cause, note: why not, or what was wrong with the bounds.
        program: the last one that ran.
    """

    lower: Tensor
    complete: bool = True
    cause: Cause | None = None
    note: str | None = None
    program: BoundProgram | None = None


def run_stage(
    stages: Stages,
    method: str,
    clauses: Clauses,
    rows: Sequence[int],
    inputs: Sequence[Interval | Tensor],
    time_left: Callable[[], float],
) -> Outcome:
    """Lower bounds of `rows`, as many at once as memory takes, until time is out."""
    outcome = Outcome(torch.full((len(clauses.matrix),), -torch.inf, dtype=torch.float64))
    start, count, bad = 0, len(rows), 0
    while start < len(rows):
        if time_left() <= (0 if math.isinf(stages.compile_seconds) else stages.compile_seconds):
            return _stopped(outcome, "timeout", "out of time", rows, start)
        part = rows[start : start + count]
        program = stages.program(method, clauses, part)
        work = _work(program)
        if work * stages.seconds_per_element > time_left():
            seconds = work * stages.seconds_per_element
            text = f"it would take about {seconds:.3g} s, more than is left"
            return _stopped(outcome, "timeout", text, rows, start)
        started = time.perf_counter()
        boxes = program.weight_boxes(stages.parameters, 1)
        lower = _run(program, [*inputs, *boxes], stages.max_memory, time_left)
        spent = time.perf_counter() - started
        if lower == "timeout":
            return _stopped(outcome, "timeout", "out of time", rows, start)
        if isinstance(lower, str):
            if len(part) > 1:
                count = max(1, len(part) // 2)
                continue
            return _stopped(outcome, "memory", lower, rows, start)
        if work:
            stages.seconds_per_element = max(0.0, spent - _OVERHEAD) / work
        finite = torch.isfinite(lower)
        bad += int((~finite).sum())
        outcome.lower[list(part)] = torch.where(finite, lower, -torch.inf)
        outcome.program = program
        start += len(part)
    if bad:
        outcome.cause = "non-finite"
        outcome.note = f"{bad} of {len(rows)} bounds are NaN or infinite, which prove nothing"
    return outcome


def _stopped(outcome: Outcome, cause: Cause, text: str, rows: Sequence[int], done: int) -> Outcome:
    outcome.complete, outcome.cause = False, cause
    outcome.note = text + (f" ({done} of {len(rows)} rows bounded)" if done else "")
    return outcome


def _run(
    program: BoundProgram,
    inputs: Sequence[Interval | Tensor],
    max_memory: int,
    time_left: Callable[[], float],
) -> Tensor | str:
    """`[rows]` float64 lower bounds on the CPU; why not, where time or memory ran out."""
    try:
        # A search takes gradients where it wants them; for the others a graph would be waste.
        with torch.set_grad_enabled(program.method in SEARCHES):
            found = program.run_within(inputs, None, max_memory, time_left=time_left)
    except OutOfTimeError:
        return "timeout"
    except MemoryBudgetError as error:
        return f"one row takes more than there is: {error}"
    except (torch.OutOfMemoryError, MemoryError):
        return "the machine ran out of memory"
    except RuntimeError as error:
        if any(text in str(error).lower() for text in _OUT_OF_MEMORY):
            return "the machine ran out of memory"
        raise
    if isinstance(found, Symbolic):
        found = found.concretize()
    lower = found.lower if isinstance(found, Interval) else found
    if not isinstance(lower, Tensor):
        raise InternalError(f"a bound program returned {type(lower).__name__}")
    return lower.detach().reshape(-1).double().cpu()


def _work(program: BoundProgram) -> int:
    """Elements that a run writes; 0 where rows are left out, and how many cannot be told."""
    if any(node.op == TIGHTEN for node in program.ir.nodes):
        return 0
    return elements(program.ir) * (REPEATS if program.method in SEARCHES else 1)


def elements(program: Program) -> int:
    """Elements that a run writes, for a batch of one: a stand-in for its time."""
    total = 1
    for node in program.nodes:
        type_ = node.result.type
        names = {entry.symbol for entry in type_.shape if isinstance(entry, Dim)}
        size = math.prod(evaluate_shape(type_.shape, dict.fromkeys(names, 1)))
        total += size * (2 if isinstance(type_, IntervalType) else 1)
    return total


def default_memory(device: torch.device) -> int:
    """2 GiB on a CPU, half of what is free on a GPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    return DEFAULT_MEMORY
