"""`cuda_graphs=True` without a GPU: where things live, what is said, what torch is asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from boundgraph.errors import ConfigError
from boundgraph.training.losses import MixedLoss
from boundgraph.training.step import StepWarning, compile_step


def trainer(device: str = "cpu", **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_fn = MixedLoss(model, 0.1, subset=2)
    return compile_step(model, optimizer, loss_fn, **options)


def test_on_a_cpu_it_says_so_and_trains():
    with pytest.warns(StepWarning, match="no CUDA graphs: the parameters are on cpu"):
        step = trainer(cuda_graphs=True, backend="eager")
    assert not step.cuda_graphs
    assert "cpu" in step.cuda_graphs_reason
    plain = trainer(backend="eager")
    x, y = torch.rand(5, 6), torch.randint(0, 3, (5,))
    for _ in range(3):
        torch.manual_seed(1)
        mine = step(x, y)
        torch.manual_seed(1)
        theirs = plain(x, y)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_everything_the_step_reads_is_on_the_device():
    """A tensor left on the host would make the device wait, or keep torch from a CUDA graph."""
    step = trainer("meta", backend="eager")
    step._ready()
    assert step._update is not None
    inside = [step._bad, *step._update.tensors(), *step.loss_fn.buffers()]
    assert {tensor.device.type for tensor in inside} == {"meta"}
    assert step.loss_fn.draw(5).device.type == "meta"


def test_the_options_are_this_steps_own():
    import torch._inductor.config as inductor_config

    step = trainer()
    assert step._compile_options() == {}
    # As on a CUDA device, which need not be at hand.
    step.device, step.cuda_graphs = torch.device("cuda"), True
    chosen = step._compile_options()["options"]
    assert chosen["combo_kernels"]
    assert chosen["triton.cudagraphs"]
    assert not inductor_config.combo_kernels
    assert not inductor_config.triton.cudagraphs
    step.options = {"options": {"combo_kernels": False}}
    assert not step._compile_options()["options"]["combo_kernels"]


def test_a_step_that_is_not_one_graph_gets_none():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adagrad(model.parameters())
    with pytest.warns(StepWarning):
        step = compile_step(model, optimizer, MixedLoss(model, 0.1), cuda_graphs=True)
    assert step.mode == "loss"
    assert not step.cuda_graphs


@pytest.mark.gpu_model
def test_the_generated_step_suits_one_cuda_graph():
    from boundgraph.gpu import report_step, unsupported

    reason = unsupported()
    if reason is not None:
        pytest.skip(reason)
    with pytest.warns(StepWarning):
        step = trainer(cuda_graphs=True)
    found = report_step(step, torch.rand(5, 6), torch.randint(0, 3, (5,)))
    assert len(found.graphs) == 1
    assert found.partitions == (1,)
    assert found.cuda_graph_obstacles == ()


@pytest.mark.gpu_model
def test_a_loss_in_the_users_own_compiled_function_suits_cuda_graphs():
    from boundgraph.gpu import report, unsupported

    reason = unsupported()
    if reason is not None:
        pytest.skip(reason)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    loss_fn = MixedLoss(model, 0.1, subset=2)
    x, y = torch.rand(5, 6), torch.randint(0, 3, (5,))
    loss_fn.prepare(x, y)
    found = report(loss_fn, x, y)
    assert found.partitions == (1, 1)
    assert found.cuda_graph_obstacles == ()


def test_a_mode_and_cuda_graphs_exclude_each_other():
    with pytest.raises(ConfigError, match="not both"):
        trainer(cuda_graphs=True, options={"mode": "reduce-overhead"})
