"""Sums over samples and positions in two stages: the same numbers by another graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from boundgraph.training._cuda_options import cuda_options
from boundgraph.training._reductions import TwoStageReductions


def gradients(x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    kept = torch.where(mask, x, 0.0)
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    return kept.sum((0, 2, 3)), kept.sum((0, 2, 3), keepdim=True), var, mean


def traced(*inputs: Tensor, least: int) -> tuple[fx.GraphModule, str]:
    module = make_fx(gradients, tracing_mode="fake")(*inputs)
    before = listing(module)
    TwoStageReductions(least)(module.graph)
    module.graph.lint()
    module.recompile()
    return module, before


def listing(module: fx.GraphModule) -> str:
    return "\n".join(
        f"{node.name}: {list(value.shape) if isinstance(value, Tensor) else '-'} = "
        f"{node.target}{node.args}{dict(node.kwargs) or ''}"
        for node in module.graph.nodes
        if node.op == "call_function"
        for value in [node.meta["val"]]
    )


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 3, 4, 5, generator=generator, dtype=torch.float64)
    # A mean far from zero, where a variance from squares would lose its digits.
    return x * 0.1 + 1000.0, x > 0


def test_text(golden):
    module, before = traced(*data(), least=100)
    golden("passes/two_stage_reductions.txt", f"# before\n{before}\n# after\n{listing(module)}")


@pytest.mark.parametrize("seed", range(3))
def test_the_same_numbers(seed):
    inputs = data(seed)
    module, before = traced(*inputs, least=100)
    assert listing(module) != before
    for mine, want in zip(module(*inputs), gradients(*inputs), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-11, atol=0.0)


def test_small_and_strided_sums_stay():
    inputs = data()
    assert traced(*inputs, least=121)[1] == listing(traced(*inputs, least=121)[0])
    apart = [t.to(memory_format=torch.channels_last) for t in inputs]
    module, before = traced(*apart, least=1)
    assert listing(module) == before


def test_it_is_a_setting_of_a_step_and_not_a_global_one():
    import torch._inductor.config as config

    chosen = cuda_options()["post_grad_custom_pre_pass"]
    assert isinstance(chosen, TwoStageReductions)
    assert chosen.uuid() == TwoStageReductions().uuid() != TwoStageReductions(1).uuid()
    # What torch.compile accepts as options, by name and type.
    torch.compile(lambda x: x, options=cuda_options())
    assert config.post_grad_custom_pre_pass is None
