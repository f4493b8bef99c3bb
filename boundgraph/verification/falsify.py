"""Search a region for an input that breaks a property: centre, corners, gradient descent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from boundgraph.attacks._common import sign
from boundgraph.attacks.pgd import check_counts
from boundgraph.domains.balls import BallInterval, ball_size, inside_ball, steepest
from boundgraph.domains.interval import Interval
from boundgraph.domains.regions import LinfBall, Region
from boundgraph.errors import InternalError, SpecError
from boundgraph.verification.spec import Clauses

# Clauses that get a descent of their own, the nearest to broken first.
MAX_TARGETS = 20


@dataclass(frozen=True)
class Attack:
    """How hard to search for a counterexample.

    Args:
        steps: gradient steps of each descent.
        restarts: descents on the clause that is worst at the moment: the first from the
            centre, the others from random points. Each clause that cheap bounds leave open
            gets one more descent of its own (20 clauses at most).
        corners: random corners tried besides the lowest and the highest.
    """

    steps: int = 20
    restarts: int = 3
    corners: int = 6

    def __post_init__(self) -> None:
        check_counts(steps=self.steps, corners=self.corners)
        if self.restarts:
            check_counts(restarts=self.restarts)


Inputs = tuple[Tensor, ...]


def attacked_box(region: Region | Tensor) -> Interval | Tensor:
    """Where counterexamples may lie: inside the region's ends, rounded towards its centre.

    `center - eps` rounds to nearest, which may fall outside the ball by half an ulp; a
    counterexample there could be disputed.
    """
    if isinstance(region, Tensor):
        return region.detach().clone()
    outer = region.interval()
    if isinstance(outer, BallInterval):
        # Points are pulled into the ball, a hair inside, wherever they come from.
        return outer
    lower, upper = outer.lower, outer.upper
    if isinstance(region, LinfBall):
        center = region.center.double()
        eps = torch.as_tensor(region.eps, dtype=torch.float64, device=center.device)
        low, high = center - eps, center + eps
        if region.clip is not None:
            low, high = low.clamp(*region.clip), high.clamp(*region.clip)
        lower = torch.maximum(lower, _rounded(low, lower.dtype, up=True))
        upper = torch.minimum(upper, _rounded(high, upper.dtype, up=False))
    return Interval(lower.detach().clone(), upper.detach().clone())


def _rounded(value: Tensor, dtype: torch.dtype, *, up: bool) -> Tensor:
    near = value.to(dtype)
    wrong = near.double() < value if up else near.double() > value
    return torch.where(
        wrong, torch.nextafter(near, torch.full_like(near, torch.inf if up else -torch.inf)), near
    )


class Search:
    """A search in progress on one sample.

    Args:
        model: in evaluation mode; run on a batch of one, as the user would.
        boxes: per input where it may move, or the fixed tensor.
        clauses: the property.
        time_left: seconds that are left, asked between runs of the model.
        generator: of random points.
    """

    def __init__(
        self,
        model: nn.Module,
        boxes: Sequence[Interval | Tensor],
        clauses: Clauses,
        time_left: Callable[[], float],
        generator: torch.Generator,
    ) -> None:
        self.model, self.boxes, self.clauses = model, tuple(boxes), clauses
        self.time_left, self.generator = time_left, generator
        rows = len(clauses.matrix)
        self.lowest = torch.full((rows,), torch.inf, dtype=torch.float64)
        self.scale = torch.zeros(rows, dtype=torch.float64)
        self.closest: Inputs | None = None
        self.closest_margin = math.inf
        self.broken: Inputs | None = None

    def quick(self, attack: Attack | None) -> bool:
        """Centre, corners and untargeted descents; whether a counterexample was found."""
        if self._observe(self._at(0.5)):
            return True
        if attack is None:
            return False
        for point in self._corners(attack.corners):
            if self.time_left() <= 0:
                return False
            if self._observe(point):
                return True
        for restart in range(attack.restarts):
            if self._descend(self._at(None if restart else 0.5), attack.steps, None):
                return True
        return False

    def targeted(self, attack: Attack | None, undecided: Sequence[int]) -> bool:
        """A descent on each open clause, the ones that came nearest to broken first."""
        if attack is None:
            return False
        clauses = self.clauses.clauses
        nearest = sorted(undecided, key=lambda i: float(self.lowest[list(clauses[i])].max()))
        return any(
            self._descend(self._at(0.5), attack.steps, clause) for clause in nearest[:MAX_TARGETS]
        )

    def confirm(self) -> tuple[Inputs, Tensor, int, tuple[float, ...]] | None:
        """Run the user's model on the counterexample once more.

        Returns:
            Inputs, output, the broken clause and its rows; None where the model, run again,
            does not break the property (it is not deterministic).
        """
        assert self.broken is not None
        inputs = tuple(tensor.clone() for tensor in self.broken)
        for tensor, box in zip(inputs, self.boxes, strict=True):
            if isinstance(box, Interval) and not _contains(box, tensor):
                raise InternalError("a counterexample left its region; this is a bug in BoundGraph")
        output = run_model(self.model, inputs)
        rows = self.clauses.rows(output)
        clause, margin = self.clauses.worst(rows)
        if margin > 0:
            self.broken = None
            return None
        return inputs, output, clause, tuple(rows[list(self.clauses.clauses[clause])].tolist())

    def _at(self, place: float | None) -> Inputs:
        """The point at a fraction of the way from lower to upper end; None for random."""
        return tuple(
            box if isinstance(box, Tensor) else self._between(box, place) for box in self.boxes
        )

    def _between(self, box: Interval, place: float | None) -> Tensor:
        if place is None:
            share = torch.rand(box.lower.shape, generator=self.generator, dtype=torch.float64).to(
                box.lower
            )
            point = box.lower * (1 - share) + box.upper * share
        else:
            point = box.lower * (1 - place) + box.upper * place
        return _into(box, point)

    def _corners(self, count: int) -> Iterator[Inputs]:
        yield self._at(0.0)
        yield self._at(1.0)
        for _ in range(count):
            yield tuple(
                box
                if isinstance(box, Tensor)
                else _into(
                    box,
                    torch.where(
                        (torch.rand(box.lower.shape, generator=self.generator) < 0.5).to(
                            box.lower.device
                        ),
                        box.lower,
                        box.upper,
                    ),
                )
                for box in self.boxes
            )

    def _observe(self, inputs: Inputs, output: Tensor | None = None) -> bool:
        """Run the model; keep the lowest value of every row and the point nearest to broken."""
        if output is None:
            output = run_model(self.model, inputs)
        rows = self.clauses.rows(output).cpu()
        self.scale = torch.maximum(self.scale, self.clauses.scale(output).cpu())
        # A NaN is not above 0: no bound may claim that it is.
        self.lowest = torch.minimum(self.lowest, torch.nan_to_num(rows, nan=-torch.inf))
        _, margin = self.clauses.worst(rows)
        if not margin >= self.closest_margin:
            self.closest, self.closest_margin = inputs, margin
        if margin > 0:
            return False
        self.broken = inputs
        return True

    def _descend(self, point: Inputs, steps: int, clause: int | None) -> bool:
        """Signed gradient steps, from the full radius of the region down to nothing.

        The first step from the centre reaches a corner, which is the answer for a model
        that is linear on the region.
        """
        moving = [i for i, box in enumerate(self.boxes) if isinstance(box, Interval)]
        for step in range(steps):
            if self.time_left() <= 0:
                return False
            with torch.enable_grad():
                leaves = {i: point[i].detach().clone().requires_grad_() for i in moving}
                given = tuple(leaves.get(i, point[i]) for i in range(len(point)))
                output = single_output(self.model(*given))
                if self._observe(point, output):
                    return True
                at = clause
                if at is None:
                    at, _ = self.clauses.worst(self.clauses.rows(output))
                flat = output.reshape(-1)
                rows_here = list(self.clauses.clauses[at])
                values = self.clauses.matrix[rows_here] @ flat + self.clauses.offset[rows_here]
                # Without moving inputs only weights require gradients.
                if not values.requires_grad or not moving:
                    return False
                gradients = torch.autograd.grad(
                    values.max(), list(leaves.values()), allow_unused=True
                )
            share = 1 - step / steps
            moved = dict(zip(moving, gradients, strict=True))
            point = tuple(
                self._moved(box, tensor, moved.get(i), share)
                for i, (box, tensor) in enumerate(zip(self.boxes, point, strict=True))
            )
        return bool(steps) and self._observe(point)

    def _moved(
        self, box: Interval | Tensor, point: Tensor, gradient: Tensor | None, share: float
    ) -> Tensor:
        if isinstance(box, Tensor) or gradient is None:
            return point
        if isinstance(box, BallInterval):
            reach = box.reach.reshape((-1,) + (1,) * (point.dim() - 1)) * share
            return inside_ball(point - reach * steepest(gradient, box.norm), box)
        step = (box.upper * 0.5 - box.lower * 0.5) * share
        return (point - step * sign(gradient)).clamp(box.lower, box.upper)


def _into(box: Interval, point: Tensor) -> Tensor:
    if isinstance(box, BallInterval):
        return inside_ball(point, box)
    return point.clamp(box.lower, box.upper)


def _contains(box: Interval, point: Tensor) -> bool:
    inside = bool(((point >= box.lower) & (point <= box.upper)).all())
    if isinstance(box, BallInterval):
        delta = point.double() - box.middle.double()
        return inside and bool((ball_size(delta, box.norm) <= box.reach.double()).all())
    return inside


def run_model(model: nn.Module, inputs: Inputs) -> Tensor:
    """The model's only output, without a graph."""
    with torch.no_grad():
        return single_output(model(*inputs))


def single_output(output: object) -> Tensor:
    """The one floating-point tensor that a model returns.

    Raises:
        SpecError: it returns anything else, or not a batch of one.
    """
    leaves = pytree.tree_leaves(output)
    if len(leaves) != 1 or not isinstance(leaves[0], Tensor):
        raise SpecError(
            f"a spec needs a model with one output tensor, this one returns {len(leaves)} values"
        )
    tensor = leaves[0]
    if not tensor.is_floating_point() or tensor.dim() == 0 or len(tensor) != 1:
        raise SpecError(
            "the model must return floating-point outputs [batch, ...]; for a batch of one it "
            f"returned {tensor.dtype}{list(tensor.shape)}"
        )
    return tensor
