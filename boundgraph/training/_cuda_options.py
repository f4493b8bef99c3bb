"""Inductor options of a compiled step on a CUDA device."""

from __future__ import annotations

from typing import Any

from torch import nn

from boundgraph.training._programs import inner_module
from boundgraph.training.losses import TrainingLoss

_SHORT = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.ReLU, nn.Flatten, nn.Identity, nn.Sequential,
)  # fmt: skip


def cuda_options(loss_fn: TrainingLoss | None = None) -> dict[str, Any]:
    """Inductor options of a step on a CUDA device, for this step only; see docs/gpu.md.

    Args:
        loss_fn: of the step, where it is known.
    """
    # Imported late: it brings torch's compiler stack.
    import torch._inductor.config as inductor

    from boundgraph.training._recomputed import RecomputedBounds
    from boundgraph.training._reductions import TwoStageReductions
    from boundgraph.training._shared_products import SharedProducts

    chosen: dict[str, Any] = {
        # Independent small kernels share a launch.
        "combo_kernels": True,
        "benchmark_combo_kernel": False,
        "combo_kernel_max_num_nodes": 16,
        # Sums over classes are written out and made where they are read. A fused loss has several
        # that follow each other, for which a kernel of reductions is better.
        "unroll_reductions_threshold": 8 if getattr(loss_fn, "fused", False) else 16,
        # A sum over the rows of a form stays in the pass that reads them (domains/relu_rows.py).
        "realize_acc_reads_threshold": 64,
        # Kernels write joined operands in place; one kernel for all would read its inputs twice.
        "max_pointwise_cat_inputs": 0,
        "max_complex_pointwise_cat_inputs": 0,
        # Channels last is for tensor cores, which float32 without TF32 does not use.
        "layout_optimization": False,
        "joint_custom_pre_pass": SharedProducts(),
        "joint_custom_post_pass": RecomputedBounds(),
        "post_grad_custom_pre_pass": TwoStageReductions(),
    }
    if loss_fn is not None and _short_expressions(loss_fn.model):
        # What is cheap is computed where it is read. Not for a normalisation or a softmax, whose
        # bounds read each value many times: written out they would take minutes to generate.
        chosen |= {"realize_opcount_threshold": 400, "realize_reads_threshold": 24}
    # Older versions of torch refuse a name that they do not know.
    return {name: value for name, value in chosen.items() if hasattr(inductor, name)}


def _short_expressions(model: nn.Module) -> bool:
    """Whether a model has linear layers and relus only, as far as its modules tell."""
    leaves = [m for m in inner_module(model).modules() if not next(m.children(), None)]
    return all(isinstance(module, _SHORT) for module in leaves)
