"""`verify`: a cascade of falsification and ever tighter bounds. Incomplete, and says so."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from boundgraph.compiler import CompileOptions
from boundgraph.domains.enclosure import corners
from boundgraph.domains.interval import Interval
from boundgraph.domains.regions import Region
from boundgraph.errors import CertificateError, ConfigError, SoundnessError, UnsupportedError
from boundgraph.options import EXPENSIVE, for_certifying, methods_of
from boundgraph.parameter_regions import ParameterRegions
from boundgraph.runtime.module import BoundProgram
from boundgraph.runtime.precision import arithmetic
from boundgraph.verification._arguments import check, labels_of, one_sample
from boundgraph.verification._stages import Outcome, Stages, default_memory, run_stage
from boundgraph.verification.certificate import certify
from boundgraph.verification.falsify import Attack, Search, attacked_box, run_model
from boundgraph.verification.spec import AnySpec, Clauses, normalize
from boundgraph.verification.verdict import Cause, Proved, Refuted, Unknown, Verdict

DEFAULT_ATTACK = Attack()
# Before these a counterexample is looked for once more, clause by clause.
# A bound may exceed a value that the model reaches by rounding, relative to what the row
# adds up. More than this is a contradiction.
_ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-9}


@dataclass(frozen=True)
class Progress:
    """Where a verification stands.

    Args:
        sample: position in the batch.
        samples: size of the batch.
        stage: `"falsify"` or a bound method, about to run.
        undecided: clauses still open.
        clauses: all clauses of the sample.
        seconds: spent on the sample.
    """

    sample: int
    samples: int
    stage: str
    undecided: int
    clauses: int
    seconds: float


Report = Callable[[Progress], None]


def verify(
    model: nn.Module,
    region: Region | Sequence[Region | Tensor],
    spec: AnySpec,
    *,
    labels: int | Sequence[int] | Tensor | None = None,
    timeout: float = 60.0,
    max_memory: int | None = None,
    methods: Sequence[str] | None = None,
    attack: Attack | None = DEFAULT_ATTACK,
    seed: int = 0,
    progress: bool | Report | None = None,
    certificate: bool = False,
    rounding: str = "nearest",
    accumulate: str = "float64",
    parameters: ParameterRegions | None = None,
) -> Verdict | list[Verdict]:
    """Prove a property on a region, find an input that breaks it, or say why neither worked.

    First the centre, corners and gradient descent look for a counterexample; then bound
    methods, cheapest first, bound the rows that are still open. A clause is proved when
    one of its rows is bounded above 0 on the whole region, so a disjunction whose members
    take turns stays Unknown. Nothing is claimed from a NaN, an infinity or an exception.

    Args:
        model: in evaluation mode, with one output tensor `[batch, ...]`; not changed.
        region: a `Box`, `LinfBall` or `LpBall` with a batch dimension, or for several inputs one
            region or (unperturbed) tensor for each.
        spec: `Margin`, `LinearSpec` (all rows), or `Constraint`s under `All` and `Any`.
        labels: one integer per sample, for a `Margin`.
        timeout: seconds for each sample, checked between steps; capture and the first
            compilation come before, the search for a certificate after.
        max_memory: bytes that bounds may take, by estimate; 2 GiB by default, on a GPU
            half of what is free.
        methods: bound methods in order; by default ibp, crown-ibp, crown and alpha-crown.
        attack: how hard to look for counterexamples; None tries the centre alone.
        seed: of random points.
        progress: True for lines on stderr; a callable gets a `Progress` before each stage.
        certificate: give a `Proved` a certificate that `boundgraph check` proves again
            (`docs/certificates.md`), or the reason why it has none.
        rounding: `"sound"` proves the property of the exact real network, `"nearest"` up to
            rounding of the bounds; see `docs/soundness.md`.
        accumulate: with `"sound"` and ibp, sums of centres are taken in `"float64"`, which loses a
            tenth of the width that `"dtype"` does and takes half as long again.
        parameters: regions of parameters, as for `boundgraph.compile`: `Proved` holds for all
            weights in them. Counterexamples are inputs, for the weights as they are.

    Returns:
        The verdict for a batch of one; for a larger batch a list, one verdict per sample.

    Raises:
        ConfigError: a bad option, a model in training mode, or reduced precision.
        RegionError, SpecError, NonFiniteError: arguments that do not fit the model.
        CaptureError, UnsupportedError: no method can bound the model.
        SoundnessError: a bound contradicts a value that the model reaches, beyond rounding.

    Example:
        >>> model = nn.Linear(2, 2, bias=False).eval()
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> region = LinfBall(torch.tensor([[1.0, 0.0]]), eps=0.1)
        >>> verify(model, region, Margin(2), labels=0).name
        'proved'
    """
    regions = (region,) if isinstance(region, Region | Tensor) else tuple(region)
    weights = parameters or {}
    batch = check(model, regions, spec, timeout, max_memory, weights)
    if certificate and weights:
        raise ConfigError(
            "a certificate is about fixed weights; leave out certificate= or parameters="
        )
    names, chosen = methods_of(methods), labels_of(labels, batch, spec)
    for name in names:
        CompileOptions(**for_certifying(name, rounding, accumulate))
    memory = default_memory(_device(regions[0])) if max_memory is None else max_memory
    stages = Stages(model, regions, memory, rounding, accumulate, weights)
    run = _Run(stages, names, timeout, attack, seed, _reporter(progress), batch, certificate)
    with arithmetic(model, rounding), torch.inference_mode(False):
        verdicts = [
            run.decide(
                sample,
                tuple(one_sample(r, sample, batch) for r in regions),
                spec,
                None if chosen is None else chosen[sample],
            )
            for sample in range(batch)
        ]
    return verdicts[0] if batch == 1 else verdicts


@dataclass
class _Run:
    """What the samples of one call share."""

    stages: Stages
    methods: tuple[str, ...]
    timeout: float
    attack: Attack | None
    seed: int
    report: Report
    batch: int
    certificate: bool = False
    unsupported: dict[str, UnsupportedError] = field(default_factory=dict)

    def decide(
        self, sample: int, regions: tuple[Region | Tensor, ...], spec: AnySpec, label: int | None
    ) -> Verdict:
        self.stages.begin(regions)
        rounding = self.stages.rounding
        inputs = [r if isinstance(r, Tensor) else corners(r, rounding) for r in regions]
        center = tuple(r if isinstance(r, Tensor) else r.center for r in regions)
        output = run_model(self.stages.model, center)
        clauses = normalize(spec, output, label, sample)
        self._require_support(clauses)
        started = time.perf_counter()

        def time_left() -> float:
            return self.timeout - (time.perf_counter() - started)

        generator = torch.Generator().manual_seed(self.seed + sample)
        boxes = [attacked_box(r) for r in regions]
        search = Search(self.stages.model, boxes, clauses, time_left, generator)
        verdict = _Case(self, sample, inputs, clauses, search, started, time_left).decide()
        if self.certificate and isinstance(verdict, Proved):
            return self._certified(verdict, regions)
        return verdict

    def _certified(self, proved: Proved, regions: tuple[Region | Tensor, ...]) -> Proved:
        """With a certificate, for which there is as much time again."""
        started = time.perf_counter()
        try:
            made = certify(
                self.stages.model,
                regions,
                proved.clauses,
                preferred=proved.lower.tolist(),
                method=proved.method,
                time_left=lambda: self.timeout - (time.perf_counter() - started),
            )
        except CertificateError as error:
            return replace(proved, uncertified=str(error))
        return replace(proved, certificate=made)

    def _require_support(self, clauses: Clauses) -> None:
        """Raise UnsupportedError, before anything runs, where no method takes the model."""
        rows = range(len(clauses.matrix))
        for method in self.methods:
            if method in self.unsupported:
                continue
            try:
                self.stages.program(method, clauses, rows)
            except UnsupportedError as error:
                self.unsupported[method] = error
                continue
            return
        raise UnsupportedError(
            list(dict.fromkeys(d for e in self.unsupported.values() for d in e.diagnostics))
        )


@dataclass
class _Case:
    """One sample: its property, the best bounds so far, and what each method came to."""

    run: _Run
    sample: int
    inputs: list[Interval | Tensor]
    clauses: Clauses
    search: Search
    started: float
    time_left: Callable[[], float]
    lower: Tensor = field(init=False)
    notes: list[str] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    deciding: list[str] = field(default_factory=list)
    program: BoundProgram | None = None

    def __post_init__(self) -> None:
        self.lower = torch.full((len(self.clauses.matrix),), -torch.inf, dtype=torch.float64)

    def decide(self) -> Verdict:
        attack, targeted = self.run.attack, False
        self._say("falsify")
        if self.time_left() <= 0:
            self._note("timeout", "out of time before anything was tried")
            return self._unknown()
        if self.search.quick(attack) and (found := self._refuted()) is not None:
            return found
        # Verdicts other than Proved are false as conditions, hence `is not None`.
        for method in self.run.methods:
            if self._stuck() or self._out_of_time(method):
                break
            if method in EXPENSIVE and not targeted:
                targeted = True
                found = self._refuted() if self.search.targeted(attack, self._open()) else None
                if found is not None:
                    return found
                if self._stuck() or self._out_of_time(method):
                    break
            if (proof := self._bound(method)) is not None:
                return proof
        if not targeted and self.time_left() > 0:
            found = self._refuted() if self.search.targeted(attack, self._open()) else None
            if found is not None:
                return found
            self._stuck()
        return self._unknown()

    def _bound(self, method: str) -> Proved | None:
        """Run one method on the open rows."""
        if method in self.run.unsupported:
            self.notes.append(f"{method}: the model has an op that it cannot bound")
            return None
        self._say(method)
        before = set(self._open())
        try:
            outcome = run_stage(
                self.run.stages, method, self.clauses, self._rows(), self.inputs, self.time_left
            )
        except UnsupportedError as error:
            self.run.unsupported[method] = error
            self.notes.append(f"{method}: the model has an op that it cannot bound")
            return None
        self._take(method, outcome)
        left = self._open()
        if len(left) < len(before):
            self.deciding.append(method)
        if left:
            return None
        best = [float(self.lower[list(rows)].max()) for rows in self.clauses.clauses]
        return Proved("+".join(self.deciding), self.lower, min(best), self.clauses, self._seconds())

    def _take(self, method: str, outcome: Outcome) -> None:
        self._check_against_the_model(method, outcome.lower)
        self.lower = torch.maximum(self.lower, outcome.lower)
        self.program = outcome.program or self.program
        if outcome.complete:
            self.ran.append(method)
        if outcome.note is not None:
            self._note(outcome.cause or "incomplete", f"{method}: {outcome.note}")

    def _check_against_the_model(self, method: str, lower: Tensor) -> None:
        rounding = _ROUNDING.get(self.clauses.matrix.dtype, 1e-3)
        over = lower - self.search.lowest - rounding * self.search.scale
        worst = int(over.argmax())
        if over[worst] > 0:
            raise SoundnessError(
                f"{method} claims that the left side of {self.clauses.row(worst)} is at least "
                f"{float(lower[worst]):.9g} on the region of sample {self.sample}, but the model "
                f"reaches {float(self.search.lowest[worst]):.9g} inside it. This is a bug in "
                "BoundGraph: please report it with the model"
            )

    def _open(self) -> list[int]:
        """Clauses without a row that is proved."""
        return [
            index
            for index, rows in enumerate(self.clauses.clauses)
            if not any(float(self.lower[row]) > 0 for row in rows)
        ]

    def _rows(self) -> list[int]:
        """Rows of the open clauses that no input seen so far breaks."""
        wanted = {row for index in self._open() for row in self.clauses.clauses[index]}
        return sorted(row for row in wanted if float(self.search.lowest[row]) > 0)

    def _stuck(self) -> bool:
        """Whether some open clause has no row that could hold everywhere."""
        lowest = self.search.lowest
        for index in self._open():
            rows = self.clauses.clauses[index]
            if not any(float(lowest[row]) > 0 for row in rows):
                if "case-split" not in self.causes:
                    self._note(
                        "case-split",
                        f"no single member of ({self.clauses.clause(index)}) holds at every "
                        "input, so bounds of single rows cannot prove it: it needs a case split",
                    )
                return True
        return False

    def _out_of_time(self, method: str) -> bool:
        if self.time_left() > 0:
            return False
        self._note("timeout", f"out of time ({self.run.timeout:g} s) before {method}")
        return True

    def _refuted(self) -> Refuted | None:
        found = self.search.confirm()
        if found is None:
            self.notes.append(
                "a counterexample did not break the property when the model ran again: the model "
                "is not deterministic"
            )
            return None
        inputs, output, clause, values = found
        text = self.clauses.clause(clause)
        return Refuted(inputs, output, clause, text, values, self.clauses, self._seconds())

    def _unknown(self) -> Unknown:
        left = self._open()
        open_rows = [float(self.lower[list(self.clauses.clauses[i])].max()) for i in left]
        summary = f"{len(left)} of {len(self.clauses.clauses)} clauses are open"
        if self.ran:
            worst = min(open_rows, default=math.nan)
            summary += f" after {', '.join(self.ran)} (lowest bound {worst:.6g})"
        order: tuple[Cause, ...] = ("timeout", "case-split", "memory", "non-finite")
        cause: Cause = next((c for c in order if c in self.causes), "incomplete")
        return Unknown(
            reason="; ".join([summary, *self.notes]),
            cause=cause,
            lower=self.lower,
            undecided=tuple(left),
            clauses=self.clauses,
            methods=tuple(self.ran),
            closest=self.search.closest,
            closest_margin=self.search.closest_margin,
            program=self.program,
            seconds=self._seconds(),
        )

    def _note(self, cause: Cause, text: str) -> None:
        self.causes.append(cause)
        self.notes.append(text)

    def _seconds(self) -> float:
        return time.perf_counter() - self.started

    def _say(self, stage: str) -> None:
        total = len(self.clauses.clauses)
        now = Progress(
            self.sample, self.run.batch, stage, len(self._open()), total, self._seconds()
        )
        self.run.report(now)


def _device(region: Region | Tensor) -> torch.device:
    return region.device if isinstance(region, Tensor) else region.interval().lower.device


def _reporter(progress: bool | Report | None) -> Report:
    if callable(progress):
        return progress
    if not progress:
        return lambda _: None

    def line(now: Progress) -> None:
        sys.stderr.write(
            f"sample {now.sample + 1}/{now.samples}: {now.stage}, {now.undecided} of "
            f"{now.clauses} clauses open, {now.seconds:.1f} s\n"
        )
        sys.stderr.flush()

    return line
