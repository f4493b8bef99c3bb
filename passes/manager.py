"""Passes: what one is, and how a pipeline of them runs, is verified and recorded."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import ClassVar

from boundgraph.errors import BoundGraphError
from boundgraph.ir.program import Program
from boundgraph.ir.types import Stage
from boundgraph.ir.verifier import OpTable, verify


class Effect(StrEnum):
    """What a pass may do to the bounds that the program computes."""

    EXACT = "exact"
    TIGHTER = "tighter"
    RELAXES = "relaxes"


@dataclass(frozen=True)
class Pass(ABC):
    """A named transformation; its fields are its options.

    The program is legal before and after, not necessarily during.

    Attributes:
        name: as it prints and as the command line spells it.
        stage: the stage of the programs it takes.
        effect: what it may do to bounds; tested on sampled boxes.
    """

    name: ClassVar[str]
    stage: ClassVar[Stage]
    effect: ClassVar[Effect]

    @abstractmethod
    def run(self, program: Program) -> Program:
        """The transformed program; the same object where nothing applies."""

    def __str__(self) -> str:
        options = ",".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))
        return f"{self.name}{{{options}}}" if options else self.name


@dataclass(frozen=True)
class PassRecord:
    """What one pass did.

    Args:
        name: the pass with its options.
        nodes_before, nodes_after: number of nodes.
        milliseconds: wall-clock time of the pass and of verifying its result.
        program: the program after the pass.
        effect: the declared effect.
    """

    name: str
    nodes_before: int
    nodes_after: int
    milliseconds: float
    program: Program
    effect: Effect

    @property
    def text(self) -> str:
        return str(self.program)

    @property
    def changed(self) -> bool:
        return self.nodes_before != self.nodes_after


def run_pipeline(
    program: Program, pipeline: Sequence[Pass], ops: OpTable
) -> tuple[Program, list[PassRecord]]:
    """Run passes in order and verify the program before the first and after each.

    Raises:
        VerifyError: a pass left an illegal program; its name and input are notes.
        BoundGraphError: whatever a pass raises, with the pass named in a note.
    """
    verify(program, ops)
    records: list[PassRecord] = []
    for step in pipeline:
        if program.stage is not step.stage:
            raise ValueError(f"pass {step} takes {step.stage} programs, not {program.stage}")
        start = time.perf_counter()
        try:
            after = step.run(program)
            verify(after, ops)
        except BoundGraphError as error:
            error.add_note(f"in pass {step}")
            raise
        elapsed = (time.perf_counter() - start) * 1e3
        records.append(
            PassRecord(str(step), len(program.nodes), len(after.nodes), elapsed, after, step.effect)
        )
        program = after
    return program, records
