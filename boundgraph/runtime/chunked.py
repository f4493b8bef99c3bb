"""Bound programs applied to a few samples at a time, as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.balls import samples_of
from boundgraph.domains.interval import Interval
from boundgraph.domains.regions import Region
from boundgraph.runtime.memory import fixed_batch
from boundgraph.runtime.module import BoundProgram


class ChunkedProgram:
    """A program of one bounded input and labels, run on slices of a batch.

    Args:
        build: compiles for an example batch; called with two samples, and once more with
            one where the model turns out to be tied to the batch size of its example.
        example: `[batch, ...]` of the shape to come.
        max_memory: bytes that the bounds may take, None for a default.
        parameters: the regions of parameters that the program was built with.
    """

    def __init__(
        self,
        build: Callable[[Tensor], BoundProgram],
        example: Tensor,
        max_memory: int | None,
        parameters: Mapping[str, Region] | None = None,
    ) -> None:
        self.parameters = parameters or {}
        first = example[:1]
        self.program = build(torch.cat([first, first]))
        fixed = fixed_batch(self.program.ir) is not None
        if fixed:
            self.program = build(first)
        fitting = self.program.samples_within(max_memory, example.device)
        self.samples = 1 if fixed else fitting
        self.max_memory = max_memory

    def run(self, region: Interval, labels: Tensor) -> Iterator[tuple[slice, Any]]:
        """The output of each slice of the batch, unchecked and without gradients."""
        for start in range(0, len(labels), self.samples):
            at = slice(start, start + self.samples)
            inputs = [samples_of(region, at)]
            inputs += self.program.weight_boxes(self.parameters, len(inputs[0].lower))
            with torch.no_grad():
                output = self.program.run_within(inputs, labels[at], self.max_memory)
            yield at, output
