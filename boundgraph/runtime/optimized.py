"""alpha-crown: bounds with free slopes, optimised while they are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.specs import Margin
from boundgraph.errors import ConfigError
from boundgraph.ops.bounded import BACKWARD
from boundgraph.runtime.emit import parameter_lookup
from boundgraph.runtime.interpret import interpret
from boundgraph.runtime.memory import samples_within
from boundgraph.runtime.module import BoundProgram, flatten


@dataclass(frozen=True)
class SlopeSearch:
    """How slopes are optimised.

    Args:
        iterations: gradient steps after the first evaluation.
        learning_rate: of Adam; slopes live in [0, 1].
        decay: factor on the learning rate after each step.
        compiled: run each iteration through `torch.compile`.
    """

    iterations: int = 20
    learning_rate: float = 0.25
    decay: float = 0.96
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.learning_rate <= 0 or not 0 < self.decay <= 1:
            raise ConfigError(f"slope search needs sensible settings, got {self}")


class OptimizedProgram(BoundProgram):
    """A `crown` program whose lower relu slopes are chosen by gradient ascent on the bounds.

    Every iterate is a sound bound whatever the slopes, so the best of each row over all
    iterations is kept: the result is never looser than `crown`. Under a specification the
    search stops when every row is decided, and spends its gradient on undecided rows.

    Source: Xu et al., alpha-CROWN (arXiv 2011.13824).
    """

    search = SlopeSearch()

    def run(
        self,
        inputs: Sequence[Interval | Tensor],
        labels: Tensor | None = None,
        clean: Sequence[Tensor] = (),
    ) -> Any:
        """Bounds after the search; detached from the parameters."""
        with torch.no_grad():
            slopes = self._first_slopes(inputs, labels)
        step = torch.compile(self.graph_module) if self.search.compiled else self.graph_module
        flat = flatten(self.arguments(inputs, labels))
        for slope in slopes:
            slope.requires_grad_(True)
        optimizer = torch.optim.Adam(slopes, lr=self.search.learning_rate) if slopes else None
        best: list[Interval] | None = None
        for iteration in range(self.search.iterations + 1):
            with torch.enable_grad():
                outputs = [_ends(output) for output in step(*flat, *slopes)]
            best = _best(best, [Interval(low.detach(), high.detach()) for low, high in outputs])
            wanted = [self._undecided(interval, labels) for interval in best]
            last = iteration == self.search.iterations
            if optimizer is None or last or not any(bool(mask.any()) for mask in wanted):
                break
            with torch.enable_grad():
                loss = -sum(map(_objective, outputs, wanted))
            _descend(optimizer, slopes, loss)
            for group in optimizer.param_groups:
                group["lr"] *= self.search.decay
        assert best is not None
        return best[0] if len(best) == 1 else tuple(best)

    def run_within(
        self,
        inputs: Sequence[Interval | Tensor],
        labels: Tensor | None = None,
        max_memory: int | None = None,
        usage: Any = None,
    ) -> Any:
        """`run`: not portioned yet."""
        return self.run(inputs, labels)

    def samples_within(self, max_memory: int | None, device: torch.device) -> int:
        """How many samples go through at once."""
        return samples_within(self.ir, max_memory, device)

    def _first_slopes(
        self, inputs: Sequence[Interval | Tensor], labels: Tensor | None
    ) -> list[Tensor]:
        """CROWN's own choice, read off one interpretation without given slopes."""
        names = self.info.slopes
        values: list[Any] = [*self.arguments(inputs, labels), *([None] * len(names))]
        seen: dict[str, Any] = {
            str(value): given for value, given in zip(self.ir.inputs, values, strict=True)
        }
        first: dict[str, Tensor] = {}

        def watch(node: Any, result: Any) -> None:
            seen[str(node.result)] = result
            if node.op.startswith(BACKWARD) and node.inputs[-1].name in names:
                pre: Interval = seen[str(node.inputs[1])]
                first[node.inputs[-1].name] = (pre.upper > -pre.lower).to(pre.lower.dtype)

        lookup = parameter_lookup(self.model, self.constants)
        interpret(self.ir, values, lookup, on_node=watch)
        return [first[name] for name in names]

    def _undecided(self, interval: Interval, labels: Tensor | None) -> Tensor:
        """Rows still worth a gradient: all without a specification."""
        if self.spec is None:
            return torch.ones_like(interval.lower, dtype=torch.bool)
        undecided = ~(interval.lower > 0)
        if isinstance(self.spec, Margin) and labels is not None:
            own = labels.unsqueeze(1) == torch.arange(self.spec.classes, device=labels.device)
            undecided = undecided & ~own
        return undecided


def _ends(output: Any) -> tuple[Tensor, Tensor]:
    return output if isinstance(output, tuple) else (output, output)


def _best(old: list[Interval] | None, new: list[Interval]) -> list[Interval]:
    """Row by row the tighter; a NaN never replaces a number and is never improved on."""
    if old is None:
        return new
    return [
        Interval(torch.maximum(a.lower, b.lower), torch.minimum(a.upper, b.upper))
        for a, b in zip(old, new, strict=True)
    ]


def _objective(ends: tuple[Tensor, Tensor], wanted: Tensor) -> Tensor:
    lower, upper = ends
    total = torch.where(wanted, lower, 0.0).sum()
    # A program that bounds below only has infinite upper ends.
    return total - torch.where(wanted & torch.isfinite(upper), upper, 0.0).sum()


def _descend(optimizer: torch.optim.Optimizer, slopes: list[Tensor], loss: Any) -> None:
    grads = torch.autograd.grad(loss, slopes, allow_unused=True)
    for slope, grad in zip(slopes, grads, strict=True):
        slope.grad = None if grad is None else torch.nan_to_num(grad, 0.0, 0.0, 0.0)
    optimizer.step()
    with torch.no_grad():
        for slope in slopes:
            slope.clamp_(0.0, 1.0)
