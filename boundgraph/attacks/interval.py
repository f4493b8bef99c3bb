"""The interval-gradient attack: steps along the symbolic bounds of a box, then PGD.

After Interval-Attack (Wang et al., arXiv 1906.02282), the attack of MixTrain (arXiv
1811.02625), written anew on sound bounds; `docs/attacks.md` lists what differs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from boundgraph.attacks._common import (
    AttackResult,
    Search,
    find_loss,
    make_generator,
    per_sample,
    random_points,
    sign,
)
from boundgraph.attacks.pgd import Ascent, check_counts
from boundgraph.compiler import compile
from boundgraph.domains.interval import Interval
from boundgraph.domains.regions import Box
from boundgraph.domains.specs import Margin
from boundgraph.errors import ConfigError, UnsupportedError
from boundgraph.runtime.chunked import ChunkedProgram
from boundgraph.runtime.module import BoundProgram


def interval(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float | Tensor,
    *,
    steps: int = 40,
    step_size: float | Tensor | None = None,
    restarts: int = 1,
    interval_steps: int = 3,
    box: float | Tensor | None = None,
    growth: float = 3.0,
    corner: bool = True,
    clip: tuple[float, float] | None = (0.0, 1.0),
    loss: str = "margin",
    random_start: bool = False,
    early_stop: bool = True,
    seed: int = 0,
    generator: torch.Generator | None = None,
    max_memory: int | None = None,
) -> AttackResult:
    """Search the ball with interval gradients in between runs of PGD.

    Each restart alternates PGD with interval steps, `interval_steps` times, and ends with
    PGD. An interval step bounds the margins over a small box around the point, takes the
    class that the bounds say could win by most, and moves along the sign of that margin's
    dependence on the input. A box in which no other class can win is grown first, up to
    half the radius of the ball.

    Args:
        model, x, y, eps, clip, loss, early_stop, seed, generator: as for `pgd`.
        steps: gradient steps of each run of PGD, so that a restart takes up to
            `(interval_steps + 1) · steps` of them.
        step_size: of PGD, by default `2.5 · eps / steps`.
        restarts: the first starts from `x` unless `random_start`.
        interval_steps: interval steps of each restart.
        box: half-width of the first box, like `eps`; by default `eps / 30`.
        growth: factor by which a box grows while no class can win in it.
        corner: jump to the corner of the ball that the signs point to, as the original
            does; otherwise move by the half-width of the box.
        max_memory: bytes that the symbolic bounds may take; samples go through them a few
            at a time.

    Raises:
        ConfigError, DataError, RegionError, NonFiniteError, SpecError: a bad argument.
        UnsupportedError: the model has no symbolic bounds, or they lose the dependence on
            the input on the way.
    """
    check_counts(steps=steps, restarts=restarts, interval_steps=interval_steps)
    if not growth > 1:
        raise ConfigError(f"growth must be above 1, got {growth}")
    with torch.inference_mode(False):
        search = Search.begin(model, x, y, eps, clip)
        half = search.eps / 30 if box is None else per_sample(box, search.x, "box")
        if not bool((half >= 0).all()):
            raise ConfigError(f"box must be >= 0, got {box}")
        ascent = Ascent(search, steps, step_size, find_loss(loss, search.classes), early_stop)
        move = IntervalStep(search, half, growth, corner, max_memory)
        random = make_generator(generator, seed)
        alternate(search, ascent, move, random, restarts, interval_steps, random_start)
        return search.finish()


Move = Callable[[Tensor, Tensor], Tensor]


def alternate(
    search: Search,
    ascent: Ascent,
    move: Move,
    random: torch.Generator,
    restarts: int,
    moves: int,
    random_start: bool,
) -> None:
    """Restarts of PGD with `moves` jumps in between; a jump is `move(points, index)`."""
    for restart in range(restarts):
        start = search.x if restart == 0 and not random_start else random_points(search, random)
        index = ascent.remaining()
        points = start[index]
        for _ in range(moves):
            points, index = ascent.run(points, index)
            if not len(index):
                break
            points = move(points, index)
        ascent.run(points, index)


class IntervalStep:
    """One step of each point along the symbolic bounds of a box around it."""

    def __init__(
        self, search: Search, half: Tensor, growth: float, corner: bool, max_memory: int | None
    ) -> None:
        self.search, self.half, self.growth, self.corner = search, half, growth, corner

        def build(example: Tensor) -> BoundProgram:
            program = compile(
                search.model,
                Box(example, example),
                method="symbolic",
                spec=Margin(search.classes),
                keep_symbolic=True,
                schedule="windows",
            )
            _require_dependence(program)
            return program

        self.bounds = ChunkedProgram(build, search.x, max_memory)
        self.block = self.bounds.program.ir.inputs[0].name

    def __call__(self, points: Tensor, index: Tensor) -> Tensor:
        """Move points `[n, ...]` of the samples `index`; those with nowhere to go stay."""
        search = self.search
        full, half = search.eps[index], self.half[index]
        cap = torch.maximum(full / 2, half)
        moved = points.clone()
        open_ = torch.arange(len(points), device=points.device)
        while len(open_):
            won, direction = self._directions(points[open_], half[open_], index[open_])
            go = open_[won]
            reach = 2 * full[go] if self.corner else half[go]
            moved[go] = search.project(points[go] + reach * direction[won], index[go])
            capped = (half[open_] >= cap[open_]).flatten(1).all(1)
            open_ = open_[~won & ~capped]
            half[open_] = torch.minimum(half[open_] * self.growth, cap[open_])
        return moved

    def _directions(self, points: Tensor, half: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Whether another class could win in each box, and the signs towards the likeliest."""
        ball = self.search.ball
        region = Interval(
            (points - half).clamp(ball.lower[index], ball.upper[index]),
            (points + half).clamp(ball.lower[index], ball.upper[index]),
        )
        labels = self.search.y[index]
        won = torch.zeros(len(points), dtype=torch.bool, device=points.device)
        direction = torch.zeros_like(points)
        for at, margin in self.bounds.run(region, labels):
            lower = margin.concretize().lower.scatter(1, labels[at].unsqueeze(1), torch.inf)
            worst, target = lower.min(1)
            # [symbols, n, classes]: one symbol per input element, in the order of flatten.
            dependence = margin.blocks[self.block]
            chosen = dependence.movedim(0, 2)[torch.arange(len(target)), target]
            won[at] = worst < 0
            direction[at] = -sign(chosen).reshape(points[at].shape)
        self.search.bound_evaluations += len(points)
        return won, direction


def _require_dependence(program: BoundProgram) -> None:
    """Raise UnsupportedError where the margins no longer depend on the input's own symbols."""
    name = program.ir.inputs[0].name
    if name in getattr(program.ir.outputs[0].type, "blocks", ()):
        return
    restarts = [node for node in program.ir.nodes if node.op == "symbolic.fresh"]
    at = ", ".join(str(node.inputs[0]) for node in restarts if node.inputs[0].name != name)
    raise UnsupportedError(
        "the interval attack follows the margins' linear dependence on the input, which is lost "
        f"where an op has no symbolic rule (bounds start anew at {at or 'an op'}; "
        "`boundgraph ops` lists the rules). Use attack.pgd for this model"
    )
