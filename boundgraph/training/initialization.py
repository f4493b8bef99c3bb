"""Weights to start certified training from, and a running average of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from boundgraph.errors import CheckpointError, ConfigError

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _inputs_per_output(module: nn.Module) -> int | None:
    """How many inputs one output element of an affine layer adds up; None for other layers."""
    if isinstance(module, nn.Linear):
        return module.in_features
    if isinstance(module, _CONVS):
        return module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, _TRANSPOSED):
        reach = math.prod(module.kernel_size) / math.prod(module.stride)
        return max(1, round(module.in_channels // module.groups * reach))
    return None


@torch.no_grad()
def initialize_for_ibp(
    model: nn.Module, generator: torch.Generator | None = None, hidden_bias: float = 0.0
) -> int:
    """Draw the weights so that interval widths neither grow nor shrink from layer to layer.

    With n inputs per output, weights are normal with standard deviation √(2π)/n and biases
    zero: then E|W|·n/2 = 1, which is the growth of a width through an affine layer followed
    by a ReLU (Shi et al., arXiv 2103.17268, section 3.1). torch's defaults grow widths by a
    factor of about √n per layer. The model is changed in place.

    What keeps the widths shrinks the signal: deep inside, values are so small that a few
    steps of the optimizer move a bias below all of them, and the unit never becomes active
    again. A positive `hidden_bias` gives such units time (`docs/benchmarks.md` has figures).

    Args:
        model: its linear and convolution layers are drawn anew; other layers are left.
        generator: source of randomness on the parameters' device; torch's own where None.
        hidden_bias: biases of the linear layers (`nn.Linear`) but the last one.

    Returns:
        The number of layers drawn.

    Raises:
        ConfigError: the model has no linear or convolution layer.
    """
    drawn = 0
    linear: list[nn.Linear] = []
    for module in model.modules():
        inputs = _inputs_per_output(module)
        if inputs is None:
            continue
        nn.init.normal_(module.weight, std=math.sqrt(2 * math.pi) / inputs, generator=generator)  # type: ignore[arg-type]
        if isinstance(module.bias, Tensor):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Linear):
            linear.append(module)
        drawn += 1
    for module in linear[:-1]:
        if isinstance(module.bias, Tensor):
            nn.init.constant_(module.bias, hidden_bias)
    if not drawn:
        raise ConfigError("initialize_for_ibp found no linear or convolution layer in the model")
    return drawn


class WeightAverage:
    """An exponential running average of a model's parameters.

    Averaged weights often certify a little better than the last ones. Buffers (BatchNorm
    statistics) are copied, not averaged.

    Args:
        model: the model being trained; it is not changed by `update`.
        decay: share of the old average kept per update, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float = 0.99) -> None:
        if not 0.0 <= decay < 1.0:
            raise ConfigError(f"decay must lie in [0, 1), got {decay!r}")
        self.model, self.decay = model, decay
        self.average = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self, decay: float | None = None) -> None:
        """Take in the current weights; `decay=0` starts the average anew."""
        current = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(self.average, current, 1.0 - (self.decay if decay is None else decay))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the average; a second call undoes it."""
        for parameter, mean in zip(self.model.parameters(), self.average, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"decay": self.decay, "average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of the same model.

        Raises:
            CheckpointError: the shapes differ.
        """
        tensors = list(state["average"])
        if [t.shape for t in tensors] != [t.shape for t in self.average]:
            raise CheckpointError("the saved weight average is of another model: shapes differ")
        self.decay = float(state["decay"])
        for mean, saved in zip(self.average, tensors, strict=True):
            mean.copy_(saved)
