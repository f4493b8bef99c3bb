"""Projected gradient descent in a p-norm (Madry et al. 2018, arXiv 1706.06083)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from boundgraph.attacks._common import (
    AttackResult,
    Loss,
    Search,
    find_loss,
    make_generator,
    per_sample,
    random_points,
)
from boundgraph.errors import ConfigError


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float | Tensor,
    *,
    steps: int = 40,
    step_size: float | Tensor | None = None,
    restarts: int = 1,
    clip: tuple[float, float] | None = (0.0, 1.0),
    loss: str = "ce",
    random_start: bool = True,
    early_stop: bool = True,
    norm: float = math.inf,
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """Search the ball around each sample for a point that the model gets wrong.

    Samples that the model gets wrong as they are come back unchanged and broken. The model
    must be in evaluation mode; it is run as it is, and its mode, buffers and gradients stay
    untouched.

    Args:
        model: returns logits `[batch, classes]`.
        x: `[batch, ...]`, inside `clip`.
        y: `[batch]` integer labels.
        eps: radius in the units of `x`: a number, `[batch]` (one per sample), or a tensor
            that broadcasts to `x`.
        steps: gradient steps of each restart.
        step_size: like `eps`; by default `2.5 · eps / steps`.
        restarts: starting points tried; the later ones only where the earlier ones failed.
        clip: range of valid inputs, or None.
        loss: what to increase: `"ce"`, `"margin"` (Carlini–Wagner) or `"dlr"`.
        random_start: start restarts uniformly in the ball; otherwise the first one starts
            from `x`.
        early_stop: leave a sample once it is broken; otherwise go on to the smallest margin.
        norm: of the ball: `math.inf`, 2, 1 or any p >= 1. Steps go along the steepest
            direction of that norm, and back into the ball along the ray to its centre.
        seed: of the random starts, where no `generator` is given.

    Raises:
        ConfigError, DataError, RegionError, NonFiniteError, SpecError: a bad argument.

    Example:
        >>> model = nn.Linear(2, 2).eval()
        >>> x = torch.full((1, 2), 0.5)
        >>> result = pgd(model, x, model(x).argmax(1), eps=0.1)
        >>> bool(((result.x_adv - x).abs() <= 0.1 + 1e-6).all())
        True
    """
    check_counts(steps=steps, restarts=restarts)
    # Tensors made under a caller's inference_mode could not be differentiated.
    with torch.inference_mode(False):
        search = Search.begin(model, x, y, eps, clip, norm)
        ascent = Ascent(search, steps, step_size, find_loss(loss, search.classes), early_stop)
        random = make_generator(generator, seed)
        for restart in range(restarts):
            start = search.x if restart == 0 and not random_start else random_points(search, random)
            index = ascent.remaining()
            if not len(index):
                break
            ascent.run(start[index], index)
        return search.finish()


class Ascent:
    """Projected sign-gradient steps on the samples of a search."""

    def __init__(
        self,
        search: Search,
        steps: int,
        step_size: float | Tensor | None,
        loss: Loss,
        early_stop: bool,
    ) -> None:
        self.search, self.steps, self.loss, self.early_stop = search, steps, loss, early_stop
        if step_size is None:
            self.step_size = search.eps * (2.5 / max(steps, 1))
        else:
            self.step_size = per_sample(step_size, search.x, "step_size")
        if not bool((self.step_size >= 0).all()):
            raise ConfigError(f"step_size must be >= 0, got {step_size}")

    def remaining(self) -> Tensor:
        """Indices of the samples that are still worth a step."""
        if self.early_stop:
            return self.search.unbroken()
        return torch.arange(len(self.search.x), device=self.search.x.device)

    def run(self, points: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Take all steps from `points`, the positions of the samples `index`.

        Returns:
            The samples that still stand (all of them without `early_stop`), and where they
            ended: `(points, index)`.
        """
        for _ in range(self.steps):
            if not len(index):
                return points, index
            gradient, margin = self.search.gradient(points, index, self.loss)
            if self.early_stop and not bool((margin > 0).all()):
                standing = margin > 0
                points, index, gradient = points[standing], index[standing], gradient[standing]
            step = self.step_size[index] * self.search.direction(gradient)
            points = self.search.project(points + step, index)
        if not len(index):
            return points, index
        margin = self.search.evaluate(points, index)
        if self.early_stop:
            standing = margin > 0
            return points[standing], index[standing]
        return points, index


def check_counts(**counts: int) -> None:
    """Raise ConfigError for a count that is not an integer, negative, or 0 restarts."""
    for name, value in counts.items():
        least = 1 if name == "restarts" else 0
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name} must be an integer >= {least}, got {value!r}")
