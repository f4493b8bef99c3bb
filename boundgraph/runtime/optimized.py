"""alpha-crown: bounds with free slopes, optimised while they are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.specs import Margin, OtherMargins
from boundgraph.errors import ConfigError
from boundgraph.ops.bounded import BACKWARD
from boundgraph.runtime.emit import parameter_lookup
from boundgraph.runtime.interpret import interpret
from boundgraph.runtime.memory import fixed_batch, peak_bytes, too_small
from boundgraph.runtime.module import BoundProgram, flatten
from boundgraph.runtime.rows import RowRunner, RowSearch, TimeLeft, Usage
from boundgraph.runtime.slices import batch_size, cut, device_of, join, separable

# A gradient keeps the forms of every walk until it is taken.
_KEPT = 8


@dataclass(frozen=True)
class SlopeSearch:
    """How slopes are optimised.

    Args:
        iterations: gradient steps after the first evaluation, of the outputs' rows.
        learning_rate: of Adam where all rows share slopes (`run`); slopes live in [0, 1].
        decay: factor on the learning rate after each step.
        compiled: run each iteration of `run` through `torch.compile`.
        inner_iterations: gradient steps of rows that tighten a relaxed op's operand.
        step: the first step where rows have slopes of their own; later ones are smaller.
        decided: search for rows and samples that are decided already, too.
    """

    iterations: int = 20
    learning_rate: float = 0.25
    decay: float = 0.96
    compiled: bool = False
    inner_iterations: int = 4
    step: float = 0.5
    decided: bool = False

    def __post_init__(self) -> None:
        least = min(self.iterations, self.inner_iterations)
        if least < 0 or min(self.learning_rate, self.step) <= 0 or not 0 < self.decay <= 1:
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
        """Bounds after the search, with fixed shapes; detached from the parameters."""
        with torch.no_grad():
            slopes = self._first_slopes(inputs, labels)
        step = torch.compile(self.graph_module) if self.search.compiled else self.graph_module
        flat = flatten(self.arguments(inputs, labels))
        best = self._search(slopes, lambda: [_ends(o) for o in step(*flat, *slopes)], labels)
        return best[0] if len(best) == 1 else tuple(best)

    def _search(
        self,
        slopes: list[Tensor],
        evaluate: Callable[[], list[tuple[Tensor, Tensor]]],
        labels: Tensor | None,
        best: list[Interval] | None = None,
    ) -> list[Interval]:
        """Gradient ascent on the slopes that `evaluate` reads; the best ends of each row."""
        for slope in slopes:
            slope.requires_grad_(True)
        optimizer = torch.optim.Adam(slopes, lr=self.search.learning_rate) if slopes else None
        for iteration in range(self.search.iterations + 1):
            with torch.enable_grad():
                outputs = evaluate()
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
        return best

    def run_within(
        self,
        inputs: Sequence[Interval | Tensor],
        labels: Tensor | None = None,
        max_memory: int | None = None,
        usage: Usage | None = None,
        time_left: TimeLeft | None = None,
    ) -> Any:
        """Bounds after a search walk by walk, in which every row has slopes of its own.

        First `crown` for all samples. Then, for samples with an undecided row, the operands of
        relaxed ops in their order (elements that a kink splits), each to its own best bounds,
        and last the outputs' undecided rows over those. Rows do not share slopes, so this takes
        few steps where one set of slopes for all rows, chosen jointly, takes many.
        """
        lookup = parameter_lookup(self.model, self.constants)
        runner, search = RowRunner(self.ir, lookup), (max_memory, usage, time_left)
        # Rounding-sound programs have no walks that rows can be taken out of.
        flat = self.arguments(inputs, labels)
        if not runner.walks:
            need = _KEPT * peak_bytes(self.ir, max(1, fixed_batch(self.ir) or 1))
            if max_memory is not None and need > max_memory:
                raise too_small(need, max_memory)
            return self.run(inputs, labels)
        whole = [*flat, *([None] * len(self.info.slopes))]
        batch = batch_size(self.ir, dict(zip(map(str, self.ir.inputs), flat, strict=False)))
        size = self.samples_within(max_memory, device_of(flat))
        with torch.no_grad():
            if not separable(self.ir, flat) or batch == 1:
                parts = [self._search_rows(runner, whole, labels, *search)]
            else:
                parts = []
                for start in range(0, batch, size):
                    at = torch.arange(start, min(start + size, batch), device=device_of(flat))
                    parts.append(self._search_samples(runner, whole, labels, at, *search))
        outputs = tuple(
            found[0] if len(found) == 1 else join(value, found)
            for value, found in zip(self.ir.outputs, zip(*parts, strict=True), strict=True)
        )
        return outputs[0] if len(outputs) == 1 else outputs

    def _search_samples(
        self,
        runner: RowRunner,
        whole: list[Any],
        labels: Tensor | None,
        at: Tensor,
        max_memory: int | None,
        usage: Usage | None,
        time_left: TimeLeft | None,
    ) -> list[Any]:
        """The search for some samples: crown first, then those that it leaves undecided."""

        def of(index: Tensor) -> list[Any]:
            return [
                None if x is None else cut(v, x, index)
                for v, x in zip(self.ir.inputs, whole, strict=True)
            ]

        given = None if labels is None else labels[at]
        if not isinstance(self.spec, Margin) or not self.info.slopes or self.search.decided:
            return self._search_rows(runner, of(at), given, max_memory, usage, time_left)
        (crown,) = runner.run(of(at), max_memory, usage, time_left=time_left)
        open_ = self._undecided(crown, given).any(1).nonzero().squeeze(1)
        if not len(open_):
            return [crown]
        assert given is not None
        part = of(at[open_])
        (found,) = self._search_rows(runner, part, given[open_], max_memory, usage, time_left)
        better = _best([Interval(crown.lower[open_], crown.upper[open_])], [found])[0]
        return [
            Interval(
                crown.lower.index_copy(0, open_, better.lower),
                crown.upper.index_copy(0, open_, better.upper),
            )
        ]

    def _search_rows(
        self,
        runner: RowRunner,
        given: list[Any],
        labels: Tensor | None,
        max_memory: int | None,
        usage: Usage | None,
        time_left: TimeLeft | None,
    ) -> list[Any]:
        search = RowSearch(
            names=frozenset(self.info.slopes),
            inner=self.search.inner_iterations,
            outer=self.search.iterations,
            size=self.search.step,
            undecided=lambda found: self._undecided(found, labels),
        )
        chosen = search if search.names else None
        return list(runner.run(given, max_memory, usage, chosen, time_left))

    def samples_within(self, max_memory: int | None, device: torch.device) -> int:
        """How many samples go through at once, with what a gradient keeps."""
        runner = RowRunner(self.ir, parameter_lookup(self.model, self.constants))
        return max(1, runner.samples_within(max_memory, device) // _KEPT)

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
            # Behind the slope, a rounding-sound op reads the interval of its result.
            own = [value.name for value in node.inputs if value.name in names]
            if own and node.op.startswith(BACKWARD):
                first[own[0]] = _adaptive(seen[str(node.inputs[1])])

        lookup = parameter_lookup(self.model, self.constants)
        interpret(self.ir, values, lookup, on_node=watch)
        return [first[name] for name in names]

    def _undecided(self, interval: Interval, labels: Tensor | None) -> Tensor:
        """Rows still worth a gradient: all without a specification."""
        if self.spec is None:
            return torch.ones_like(interval.lower, dtype=torch.bool)
        undecided = ~(interval.lower > 0) | self.search.decided
        if isinstance(self.spec, OtherMargins):
            return undecided
        if isinstance(self.spec, Margin) and labels is not None:
            own = labels.unsqueeze(1) == torch.arange(self.spec.classes, device=labels.device)
            undecided = undecided & ~own
        return undecided


def _adaptive(pre: Interval) -> Tensor:
    """The slope that CROWN takes: 1 where most of the interval is positive."""
    return (pre.upper > -pre.lower).to(pre.lower.dtype)


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
