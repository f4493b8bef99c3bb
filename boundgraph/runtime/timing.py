"""How long the parts of a bounded program take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.ir.program import Node
from boundgraph.ops.bounded import BACKWARD
from boundgraph.runtime.emit import parameter_lookup
from boundgraph.runtime.interpret import interpret
from boundgraph.runtime.module import BoundProgram

_ASSEMBLED = "_backward"


@dataclass(frozen=True)
class Times:
    """Seconds of one run, node by node, all rows at once.

    Args:
        walks: by the name of the value that a backward walk bounds.
        rest: of everything else.
    """

    walks: dict[str, float]
    rest: float


def measure(
    program: BoundProgram,
    inputs: Sequence[Interval | Tensor],
    labels: Tensor | None = None,
    repeats: int = 3,
) -> Times:
    """The fastest of several runs by the interpreter, on a CPU.

    Args:
        program: any bounded program.
        inputs, labels: as for `BoundProgram.run`.
        repeats: runs.
    """
    found = [_once(program, inputs, labels) for _ in range(repeats)]
    walks = {name: min(times.walks[name] for times in found) for name in found[0].walks}
    return Times(walks, min(times.rest for times in found))


def _once(
    program: BoundProgram, inputs: Sequence[Interval | Tensor], labels: Tensor | None
) -> Times:
    walks: dict[str, float] = {}
    rest = waiting = 0.0
    last = time.perf_counter()

    def note(node: Node, _: Any) -> None:
        nonlocal rest, waiting, last
        now = time.perf_counter()
        spent, last = now - last, now
        if not node.op.startswith(BACKWARD):
            rest += spent
            return
        waiting += spent
        # The nodes of a walk stand together, and this is its last.
        if node.op.endswith("assemble"):
            name = node.result.name.removesuffix(_ASSEMBLED)
            walks[name] = walks.get(name, 0.0) + waiting
            waiting = 0.0

    with torch.no_grad():
        given = program.arguments(inputs, labels)
        interpret(
            program.ir, given, parameter_lookup(program.model, program.constants), on_node=note
        )
    return Times(walks, rest)
