"""One clean pass for the clean loss and for the statistics that the bounds normalise with.

A program whose statistics come from the clean batch computes the clean logits on its way.
Where nothing else would be missed, the loss takes them from there, and what a pass of the
model does beside its result, moving running statistics, is done here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from boundgraph.ir.program import Program


def replaceable(model: nn.Module) -> bool:
    """Whether a pass of the model does nothing but compute logits and move running statistics."""
    moved: set[int] = set()
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            return False
        if module._backward_pre_hooks or parametrize.is_parametrized(module):
            return False
        if isinstance(module, _BatchNorm):
            if module.training and (module.momentum is None or not module.affine):
                return False
            moved.update(id(buffer) for buffer in module.buffers(recurse=False))
    # Another buffer may be written by the model's own code.
    return all(id(buffer) in moved for buffer in model.buffers())


def normalizations(program: Program, model: nn.Module) -> tuple[_BatchNorm, ...] | None:
    """The modules whose statistics a program with clean outputs returns, in their order.

    None where a normalisation cannot be told to be a module of the model, or a module that
    tracks statistics does not appear.
    """
    found: list[_BatchNorm] = []
    modules = dict(model.named_modules())
    for node in program.nodes:
        if node.op != "batch_norm_train":
            continue
        path, _, name = node.inputs[1].name.rpartition(".") if len(node.inputs) > 1 else ("",) * 3
        module = modules.get(path)
        if not isinstance(module, _BatchNorm) or name != "weight" or not node.inputs[1].param:
            return None
        found.append(module)
    tracking = {
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
    }
    return tuple(found) if found and tracking <= set(found) else None


def move_statistics(modules: Sequence[_BatchNorm], statistics: Sequence[Tensor]) -> None:
    """Move running statistics as batch normalisation does: (1 − m)·old + m·new.

    Args:
        modules: from `normalizations`.
        statistics: mean and unbiased variance of each, alternating.
    """
    with torch.no_grad():
        for position, module in enumerate(modules):
            if module.running_mean is None or module.running_var is None:
                continue
            assert module.momentum is not None
            mean, var = statistics[2 * position], statistics[2 * position + 1]
            module.running_mean.lerp_(mean.to(module.running_mean.dtype), module.momentum)
            module.running_var.lerp_(var.to(module.running_var.dtype), module.momentum)
            if module.num_batches_tracked is not None:
                module.num_batches_tracked.add_(1)
