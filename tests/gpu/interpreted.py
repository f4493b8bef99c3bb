"""Run in a process of its own with TRITON_INTERPRET=1: generated kernels against eager."""

from __future__ import annotations

import json
import sys

import torch
from torch import nn

from boundgraph.gpu import report_loss
from boundgraph.training.losses import MixedLoss


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 6), nn.ReLU(),
        nn.Linear(6, 5),
    )  # fmt: skip


def difference(method: str, subset: int | None, fault: bool = False) -> float:
    """Relative L2 difference of the gradient between kernels and eager."""
    x, y = torch.rand(2, 1, 8, 8), torch.randint(0, 5, (2,))
    grads = []
    for interpret in (False, True):
        model = network()
        loss_fn = MixedLoss(model, 0.1, method=method, subset=subset, seed=0)
        if interpret:
            # The program that the report uses, so that a fault is planted into that one.
            loss_fn.tune_for = "cuda"
        loss_fn.prepare(x, y)
        if interpret and fault:
            for node in loss_fn.program.graph_module.graph.nodes:
                if node.op == "call_method" and node.target == "abs":
                    node.replace_all_uses_with(node.args[0])
            loss_fn.program.graph_module.recompile()
        if interpret:
            report_loss(loss_fn, x, y, execute=True)
        else:
            loss_fn(x, y).backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    eager, kernels = grads
    return float((eager - kernels).norm() / eager.norm())


RUNS = {
    "ibp": lambda: difference("ibp", None),
    "subset": lambda: difference("ibp", 1),
    "crown-ibp": lambda: difference("crown-ibp", None),
    "fault": lambda: difference("ibp", None, fault=True),
}


if __name__ == "__main__":
    json.dump({name: RUNS[name]() for name in sys.argv[1:]}, sys.stdout)
