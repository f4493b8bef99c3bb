"""What backward computes again instead of reading it: the same numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from residual import Residual
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm
from boundgraph.domains.relu_rows import relu_form
from boundgraph.training._cuda_options import cuda_options
from boundgraph.training._recomputed import RecomputedBounds
from boundgraph.training.losses import MixedLoss

aten = torch.ops.aten


def backend(graphs: list[fx.GraphModule], *passes: RecomputedBounds):
    """Runs what the passes and torch's partitioner leave, as a backend of torch.compile."""

    def cut(module, inputs, **options):
        for each in passes:
            each(module.graph)
        module.graph.lint()
        module.recompile()
        return min_cut_rematerialization_partition(module, inputs, **options)

    def keep(module, _):
        graphs.append(module)
        return module

    return aot_autograd(
        fw_compiler=keep,
        bw_compiler=keep,
        partition_fn=cut,
        decompositions=select_decomp_table(),
    )


def run(fn, inputs: list[Tensor], *passes) -> tuple[list[Tensor], list[fx.GraphModule]]:
    """Result and gradients, and the graphs that were run."""
    graphs: list[fx.GraphModule] = []
    torch._dynamo.reset()
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    result = torch.compile(fn, backend=backend(graphs, *passes), dynamic=False)(*leaves)
    result.backward()
    return [result.detach(), *(leaf.grad for leaf in leaves)], graphs


def stored(forward: fx.GraphModule) -> list[fx.Node]:
    """What forward hands to backward, without its inputs."""
    outputs = forward.graph.output_node().args[0][1:]
    return [node for node in outputs if node is not None and node.op != "placeholder"]


def lines(x: Tensor, kernel: Tensor, offset: Tensor, rows: Tensor) -> Tensor:
    """An interval through a convolution and relu, and rows of a form through the relu's lines."""
    center = F.conv2d(x, kernel, offset)
    radius = F.conv2d(torch.full_like(x, 0.1), kernel.abs())
    pre = Interval(center - radius, center + radius)
    clean = torch.relu(F.conv2d(x + 0.03, kernel, offset))
    form = relu_form(LinearForm(rows, rows.new_zeros(rows.shape[:2])), pre, offset)
    ends = torch.relu(pre.lower), torch.relu(pre.upper)
    middle = F.conv2d((ends[0] + ends[1]) * 0.5, kernel[:, :1].expand(-1, kernel.shape[0], -1, -1))
    return middle.sin().sum() + (clean * clean).sum() + form.coeff.cos().sum() + form.offset.sum()


def operands(seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    batch, channels = 3 + seed, 2 + seed % 2
    x, kernel = normal(batch, 1, 7, 7), normal(channels, 1, 2, 2)
    return [x, kernel, normal(channels), normal(2, batch, channels, 6, 6)]


def listing(module: fx.GraphModule) -> str:
    return "\n".join(
        f"{node.name} = {node.target}({', '.join(map(str, node.args))})"
        for node in module.graph.nodes
    )


def test_text(golden):
    def small(x, weight):
        y = x @ weight
        return (torch.relu(y - 1.0) * torch.relu(y + 1.0)).sum()

    inputs = [torch.rand(4, 3), torch.rand(3, 5)]
    plain, mine = run(small, inputs)[1], run(small, inputs, RecomputedBounds(1))[1]
    text = "\n".join(
        f"# {when}, {which}\n{listing(graph)}"
        for when, graphs in (("before", plain), ("after", mine))
        for which, graph in zip(("forward", "backward"), graphs, strict=True)
    )
    golden("passes/recomputed_bounds.txt", text)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_numbers(seed):
    inputs = operands(seed)
    want, plain = run(lines, inputs)
    found, mine = run(lines, inputs, RecomputedBounds(1))
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    # No slopes; of the masks of relus one byte for each unit: clean, lower and upper.
    kinds = [node.meta["val"].dtype for node in stored(mine[0])]
    assert kinds.count(torch.uint8) == 1
    assert aten.div.Tensor not in [node.target for node in stored(mine[0])]
    assert aten.div.Tensor in [node.target for node in mine[1].graph.nodes]
    assert torch.bool in [node.meta["val"].dtype for node in stored(plain[0])]


def test_zeros_and_nan_pass_as_before():
    """A mask is 0 and not below, and NaN is no mask."""

    def both(x, weight):
        y = x * weight
        total = torch.relu(y - 1.0) * 3.0 + torch.relu(y) + torch.relu(y @ weight.t()) @ weight
        return total.nan_to_num(7.0).sum()

    x = torch.tensor([[1.0, -0.0, 0.0, float("nan"), -2.0, 1.5]], dtype=torch.float64)
    inputs = [x, torch.ones(1, 6, dtype=torch.float64)]
    want, found = run(both, inputs)[0], run(both, inputs, RecomputedBounds(1))[0]
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True, rtol=0.0, atol=0.0)


def test_dropout_draws_once():
    def drawn(x, weight):
        return (F.dropout(torch.relu(x @ weight), 0.5) * (x @ weight)).sum()

    inputs = [torch.rand(40, 6, dtype=torch.float64), torch.rand(6, 30, dtype=torch.float64)]
    torch.manual_seed(3)
    want = run(drawn, inputs)[0]
    torch.manual_seed(3)
    found = run(drawn, inputs, RecomputedBounds(1))[0]
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other)


FUSED = pytest.param("crown-ibp", True, marks=pytest.mark.nightly)


@pytest.mark.parametrize(("method", "fused"), [("ibp", False), ("crown-ibp", False), FUSED])
def test_a_loss(method, fused):
    torch.manual_seed(0)
    loss_fn = MixedLoss(
        Residual(method == "ibp").double(), 0.05, method=method, subset=3, fused=fused, seed=0
    )
    loss_fn.tune_for = "cuda"
    x, y = torch.rand(6, 1, 6, 6, dtype=torch.float64), torch.arange(6) % 4
    loss_fn.prepare(x, y)
    index = torch.tensor([4, 0, 1])
    weights = list(loss_fn.model.parameters())
    eager = torch.autograd.grad(loss_fn.compute(x, y, index).loss, weights)
    cut = cuda_options()
    graphs: list[fx.GraphModule] = []
    passes = (cut["joint_custom_pre_pass"], RecomputedBounds(1))
    torch._dynamo.reset()

    def compute(x, y, index):
        return loss_fn.compute(x, y, index).loss

    loss = torch.compile(compute, backend=backend(graphs, *passes))(x, y, index)
    loss.backward()
    for weight, want in zip(weights, eager, strict=True):
        torch.testing.assert_close(weight.grad, want, rtol=1e-9, atol=1e-11)
    assert len(graphs) == 2


def test_it_is_a_setting_of_a_step_and_not_a_global_one():
    import torch._inductor.config as config

    chosen = cuda_options()["joint_custom_post_pass"]
    assert isinstance(chosen, RecomputedBounds)
    assert chosen.uuid() == RecomputedBounds().uuid() != RecomputedBounds(1).uuid()
    assert config.joint_custom_post_pass is None


def test_expressions_are_written_out_for_linear_layers_and_relus_only():
    """Where each value is read many times, as in a normalisation, code would grow without end."""
    layers = (nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    short = cuda_options(MixedLoss(nn.Sequential(*layers), 0.1))
    normed = cuda_options(MixedLoss(nn.Sequential(*layers[:2], nn.LayerNorm(6)), 0.1))
    assert short["realize_opcount_threshold"] > 30
    assert "realize_opcount_threshold" not in normed
    assert "realize_opcount_threshold" not in cuda_options()
    torch.compile(lambda x: x, options=short)


def test_an_older_torch_gets_the_options_that_it_knows(monkeypatch):
    import torch._inductor.config as config

    known = cuda_options()
    monkeypatch.delattr(config, "combo_kernel_max_num_nodes")
    assert set(known) - set(cuda_options()) == {"combo_kernel_max_num_nodes"}
