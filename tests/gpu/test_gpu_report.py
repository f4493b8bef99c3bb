"""What is counted in generated code, on code whose counts are known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from boundgraph.errors import GpuReportError
from boundgraph.gpu import _inductor, report, report_loss, report_step
from boundgraph.training.losses import MixedLoss, TrainingLoss
from boundgraph.training.step import compile_step

pytestmark = pytest.mark.gpu_model
BATCH = 8


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 12), nn.ReLU(),
        nn.Linear(12, 5),
    )  # fmt: skip


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(BATCH, 1, 8, 8), torch.randint(0, 5, (BATCH,))


@pytest.fixture(scope="module")
def plain():
    return report_loss(TrainingLoss(small_network()), *batch())


@pytest.fixture(scope="module")
def mixed():
    return report_loss(MixedLoss(small_network(), 0.1, subset=None), *batch())


def test_counts_of_a_known_function():
    def fn(x, weight):
        return torch.relu(x @ weight) * 2

    found = report(fn, torch.rand(16, 8), torch.rand(8, 4))
    assert (found.triton, found.library, found.atomics) == (1, 1, 0)
    assert found.flops == 2 * 16 * 8 * 4
    assert found.library_bytes == 4 * (16 * 8 + 8 * 4 + 16 * 4)
    # The product is read and written once, in place or not.
    assert found.fused_bytes == 4 * 2 * 16 * 4
    assert found.cuda_graph_obstacles == ()


def test_a_training_step_fits_one_cuda_graph(plain, mixed):
    for found in (plain, mixed):
        assert found.atomics == 0
        assert found.synchronisations == ()
        assert found.fallbacks == ()
        assert all(parts <= 1 for parts in found.partitions)
        assert len(found.graphs) == 2


def test_interval_bounds_cost_two_more_passes(plain, mixed):
    assert mixed.flops == pytest.approx(3 * plain.flops, rel=0.15)
    assert mixed.launches < 3 * plain.launches


def test_no_register_spills(mixed):
    used = mixed.resources()
    assert len(used) >= mixed.triton
    assert all(entry.spilled == 0 for entry in used)


def test_atomics_and_waits_are_found():
    def scatter(x, index):
        return torch.zeros(4, 3).index_add(0, index, x)

    assert report(scatter, torch.rand(9, 3), torch.randint(0, 4, (9,))).atomics == 1

    def choose(x, weight):
        kept = (x @ weight).relu()
        return kept[kept.sum(1) > 0] @ weight

    dynamo = {"capture_dynamic_output_shape_ops": True}
    found = report(choose, torch.rand(6, 4), torch.rand(4, 4), dynamo=dynamo)
    assert found.synchronisations
    assert any("waits" in line for line in found.cuda_graph_obstacles)


def test_what_is_no_graph_is_refused():
    def branch(x):
        return x * 2 if bool(x.sum() > 0) else x

    with pytest.raises(GpuReportError, match="one graph"):
        report(branch, torch.rand(3))


def test_the_whole_step_is_one_graph():
    model = small_network()
    optimizer = torch.optim.Adam(model.parameters())
    loss_fn = MixedLoss(model, 0.1, subset=4)
    before = [p.detach().clone() for p in model.parameters()]
    found = report_step(compile_step(model, optimizer, loss_fn), *batch())
    assert len(found.graphs) == 1
    # What `cuda_graphs=True` takes away (tests/training/test_cuda_graphs.py): the state of the
    # optimizer and the weights may move between steps.
    assert found.cuda_graph_obstacles
    assert all(o.endswith("may move") for o in found.cuda_graph_obstacles)
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    eager = compile_step(model, torch.optim.Adam(model.parameters()), loss_fn, backend=None)
    with pytest.raises(GpuReportError, match="not one graph"):
        report_step(eager, *batch())


def test_an_unknown_torch_is_named(monkeypatch):
    monkeypatch.setattr(_inductor, "KNOWN", ("1.0",))
    with pytest.raises(GpuReportError, match=r"knows torch 1\.0; this is torch"):
        report(torch.relu, torch.rand(2))


def interpreted(*runs: str) -> dict[str, float]:
    """Gradient differences of `interpreted.py`, whose process sets up the interpreter first."""
    script = Path(__file__).with_name("interpreted.py")
    done = subprocess.run(
        [sys.executable, str(script), *runs],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_kernels_in_the_interpreter_agree_with_eager():
    # Single precision, sums of fewer than a hundred products.
    assert interpreted("ibp")["ibp"] < 1e-6


@pytest.mark.nightly
def test_more_kernels_in_the_interpreter():
    found = interpreted("subset", "crown-ibp", "fault")
    assert found["fault"] > 0.01
    assert found["subset"] < 1e-6
    assert found["crown-ibp"] < 1e-6
