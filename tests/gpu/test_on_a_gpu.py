"""What only a GPU can show; skipped without one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import boundgraph as bg
from boundgraph.training.losses import MixedLoss
from boundgraph.training.step import compile_step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 12), nn.ReLU(),
        nn.Linear(12, 5),
    )  # fmt: skip


@pytest.mark.parametrize("method", ["ibp", "mix", "crown-ibp", "crown"])
def test_bounds_on_the_gpu_enclose_the_model_on_the_cpu(method):
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    model = network().double()
    region = bg.LinfBall(x, 0.05)
    here = bg.compile(model, region, method=method)(region)
    there = bg.LinfBall(x.cuda(), 0.05)
    far = bg.compile(network().double().cuda(), there, method=method)(there)
    torch.testing.assert_close(far.lower.cpu(), here.lower)
    torch.testing.assert_close(far.upper.cpu(), here.upper)


def test_a_cuda_graph_trains_like_the_eager_step():
    x, y = torch.rand(8, 1, 8, 8).cuda(), torch.randint(0, 5, (8,)).cuda()
    outcomes = []
    for graphs in (False, True):
        model = network().cuda()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        loss_fn = MixedLoss(model, 0.1, subset=4, seed=0)
        backend = "inductor" if graphs else None
        step = compile_step(model, optimizer, loss_fn, backend=backend, cuda_graphs=graphs)
        losses = [step(x, y)["loss"] for _ in range(4)]
        assert step.cuda_graphs == graphs
        outcomes.append(torch.stack(losses))
    torch.testing.assert_close(*outcomes)
