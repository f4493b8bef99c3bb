"""The three verdicts. Only `Proved` is true as a condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from boundgraph.runtime.module import BoundProgram
from boundgraph.verification.certificate import Certificate
from boundgraph.verification.spec import Clauses


@dataclass(frozen=True, eq=False)
class Proved:
    """Every clause has a row whose sound lower bound over the whole region is above 0.

    Args:
        method: the methods that decided clauses, joined by `+`, in the order they ran.
        lower: `[rows]`, the best lower bound of each row; -inf where none was needed.
        margin: the smallest over the clauses of their best row's bound, above 0.
        clauses: what was proved.
        seconds: wall-clock time.
        certificate: a record of a proof that can be checked on its own, where asked for.
        uncertified: why there is none, where one was asked for.
    """

    method: str
    lower: Tensor
    margin: float
    clauses: Clauses
    seconds: float
    certificate: Certificate | None = None
    uncertified: str | None = None

    name = "proved"

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        return f"proved by {self.method}: every margin is at least {self.margin:.6g}"


@dataclass(frozen=True, eq=False)
class Refuted:
    """An input of the region at which the user's model breaks the property.

    Args:
        counterexample: one tensor per model input, batch of one: `model(*counterexample)`.
            Every element lies between the region's ends, without tolerance.
        output: what the model itself returned there, in a run after the search.
        clause: index of the broken clause.
        violated: that clause in words.
        values: the left sides of its rows, none of them above 0.
        clauses: what was to be proved.
        seconds: wall-clock time.
    """

    counterexample: tuple[Tensor, ...]
    output: Tensor
    clause: int
    violated: str
    values: tuple[float, ...]
    clauses: Clauses
    seconds: float

    name = "refuted"

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        at = ", ".join(f"{value:.6g}" for value in self.values)
        return f"refuted: {self.violated} is false at the counterexample (left side {at})"


Cause = Literal["timeout", "memory", "non-finite", "case-split", "incomplete"]


@dataclass(frozen=True, eq=False)
class Unknown:
    """Neither proved nor refuted. Carries what a complete search would start from.

    Args:
        reason: why, in words, with what each method came to.
        cause: `"timeout"`, `"memory"`, `"non-finite"` (a method's bounds held NaN or
            infinity), `"case-split"` (some clause has no row that holds everywhere) or
            `"incomplete"` (the bounds are too loose).
        lower: `[rows]`, the best sound lower bound of each row, -inf where there is none.
        undecided: indices of the clauses left over; the others are proved.
        clauses: what was to be proved.
        methods: the methods that ran to their end.
        closest: the inputs at which the property came nearest to being broken.
        closest_margin: the largest row of the worst clause there, above 0.
        program: the last bound program that ran, over rows that were open then; its
            `trace_bounds(region)` gives the bounds of every value inside. None if none ran.
        seconds: wall-clock time.
    """

    reason: str
    cause: Cause
    lower: Tensor
    undecided: tuple[int, ...]
    clauses: Clauses
    methods: tuple[str, ...]
    closest: tuple[Tensor, ...] | None
    closest_margin: float
    program: BoundProgram | None
    seconds: float

    name = "unknown"

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return f"unknown: {self.reason}"


Verdict = Proved | Refuted | Unknown
