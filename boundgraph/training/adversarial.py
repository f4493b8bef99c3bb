"""Adversarial training, the baseline that certifies nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boundgraph.domains.balls import BallInterval, inside_ball, steepest
from boundgraph.domains.interval import Interval
from boundgraph.domains.regions import ball_interval
from boundgraph.errors import ConfigError
from boundgraph.training._programs import inner_module
from boundgraph.training.losses import TrainingLoss


class AdversarialLoss(TrainingLoss):
    """Cross-entropy on inputs moved by projected gradient descent (Madry et al., 1706.06083).

    Args:
        steps: gradient steps of the attack.
        step_size: of one step as a fraction of ε; None for `2.5 / steps`.
        seed: of the random start; None uses torch's default generator.
    """

    def __init__(
        self,
        model: nn.Module,
        eps: float,
        *,
        steps: int = 7,
        step_size: float | None = None,
        clip: tuple[float, float] | None = (0.0, 1.0),
        norm: float = math.inf,
        seed: int | None = None,
    ) -> None:
        super().__init__(model, eps, alpha=1.0, clip=clip, norm=norm)
        if isinstance(steps, bool) or steps < 1:
            raise ConfigError(f"steps must be >= 1, got {steps!r}")
        if step_size is not None and not step_size > 0:
            raise ConfigError(f"step_size must be > 0 (a fraction of eps), got {step_size!r}")
        self.steps, self.step_size = steps, 2.5 / steps if step_size is None else float(step_size)
        self.generator: torch.Generator | None = None
        if seed is not None:
            self.generator = torch.Generator(device=self.eps.device).manual_seed(seed)

    def perturb(self, x: Tensor, y: Tensor) -> Tensor:
        """The attacked batch, detached. BatchNorm runs in evaluation mode meanwhile."""
        region = ball_interval(x.detach(), self.eps, self.norm, self.clip)
        noise = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=self.generator)
        moved = _inside(region.lower + noise * (region.upper - region.lower), region)
        # The attack must not move the running statistics of the model that it attacks.
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            for _ in range(self.steps):
                moved.requires_grad_(True)
                with torch.enable_grad():
                    loss = F.cross_entropy(inner_module(self.model)(moved), y)
                (gradient,) = torch.autograd.grad(loss, moved)
                way = gradient.sign() if self.norm == math.inf else steepest(gradient, self.norm)
                moved = _inside(moved.detach() + self.step_size * self.eps * way, region)
        finally:
            for module, mode in modes:
                module.training = mode
        return moved.detach()

    def training_state(self) -> dict[str, Any]:
        state = super().training_state()
        state["generator"] = None if self.generator is None else self.generator.get_state()
        return state

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        super().load_training_state(state)
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"])


def _inside(points: Tensor, region: Interval) -> Tensor:
    """Points pulled back into the region."""
    if isinstance(region, BallInterval):
        return inside_ball(points, region)
    return torch.minimum(torch.maximum(points, region.lower), region.upper)
