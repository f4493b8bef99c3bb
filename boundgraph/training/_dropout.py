"""Dropout in a training loss: one mask for the clean batch and for the bounds of its samples.

A bound of a network that draws its masks anew bounds no network at all. So each call of a dropout
layer becomes a product with a mask that is an input of the program: it is drawn once for the whole
batch, the clean logits are computed with it, and each bounded sample takes its own part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from boundgraph.ops._whole import copy_over, tensor_at, tensor_names

_WHOLE_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@dataclass(frozen=True)
class Mask:
    """One call of a dropout layer.

    Args:
        p: probability of 0.
        shape: of one sample of the mask; 1 where elements of a channel share a number.
    """

    p: float
    shape: tuple[int, ...]

    def draw(self, batch: int, like: Tensor) -> Tensor:
        """0 or 1/(1 − p) for each element, `[batch, *shape]`."""
        return F.dropout(like.new_ones((batch, *self.shape)), self.p, training=True)


@dataclass
class _Holder:
    """Masks that the calls take in their order; where there are none, the calls are noted."""

    masks: list[Tensor] = field(default_factory=list)
    calls: list[Mask] | None = None


class _Product(nn.Module):
    """Stands in the place of a dropout layer."""

    def __init__(self, layer: nn.modules.dropout._DropoutNd, holder: _Holder) -> None:
        super().__init__()
        self.p, self.channels = layer.p, isinstance(layer, _WHOLE_CHANNELS)
        self.holder = holder

    def forward(self, x: Tensor) -> Tensor:
        if self.holder.calls is None:
            return x * self.holder.masks.pop(0)
        shape = tuple(x.shape[1:])
        if self.channels:
            shape = (*shape[:1], *(1,) * len(shape[1:]))
        self.holder.calls.append(Mask(self.p, shape))
        return x


class Masked(nn.Module):
    """A model with the masks of its dropout layers as further inputs, over the same tensors.

    Args:
        model: the user's, which is left as it is.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        names = tensor_names(model)
        self.inner = copy_over(model, {name: tensor_at(model, name) for name in names}, "")
        self.holder = _Holder()
        for module in tuple(self.inner.modules()):
            for name, child in module._modules.items():
                if _drops(child):
                    module._modules[name] = _Product(child, self.holder)  # type: ignore[arg-type]
        self.train(model.training)
        for (_, old), (_, new) in zip(_kept(model), _kept(self.inner), strict=True):
            new.training = old.training

    def forward(self, x: Tensor, *masks: Tensor) -> Tensor:
        self.holder.masks = list(masks)
        return self.inner(x)  # type: ignore[no-any-return]

    def calls(self, x: Tensor) -> tuple[Mask, ...]:
        """The calls of dropout layers in a pass of the model, in order; nothing is computed."""
        found: list[Mask] = []
        self.holder.calls = found
        try:
            with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
                named = (*self.named_parameters(), *self.named_buffers())
                fakes: dict[str, Tensor] = {
                    name: mode.from_tensor(tensor.detach()) for name, tensor in named
                }
                torch.func.functional_call(self, fakes, (mode.from_tensor(x.detach()),))
        finally:
            self.holder.calls = None
        return tuple(found)


def _kept(model: nn.Module) -> list[tuple[str, nn.Module]]:
    modules = model.named_modules(remove_duplicate=False)
    return [(n, m) for n, m in modules if not _drops(m) and not isinstance(m, _Product)]


def _drops(module: nn.Module | None) -> bool:
    known = (nn.Dropout, *_WHOLE_CHANNELS)
    return isinstance(module, known) and module.training and module.p > 0.0


def drops(model: nn.Module) -> bool:
    """Whether some dropout layer of the model is in training mode."""
    return any(_drops(module) for module in model.modules())


def draw_masks(masks: Sequence[Mask], x: Tensor) -> tuple[Tensor, ...]:
    """Masks for a batch, one for each call."""
    return tuple(mask.draw(x.shape[0], x) for mask in masks)
