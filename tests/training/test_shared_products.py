"""The clean batch and the centres through each weight in one call: the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from residual import Residual
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.fx.experimental.proxy_tensor import make_fx

from boundgraph.training._cuda_options import cuda_options
from boundgraph.training._shared_products import SharedProducts
from boundgraph.training.losses import MixedLoss
from boundgraph.training.step import compile_step

aten = torch.ops.aten
PRODUCTS = (
    aten.convolution.default,
    aten.convolution_backward.default,
    aten.mm.default,
    aten.addmm.default,
)


def tensors(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [tensor.requires_grad_() for tensor in made]


def joined(fn, inputs, **options) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Forward and backward of the sum of `fn` before and after the pass."""

    def gradients(*given: Tensor) -> list[Tensor]:
        result = fn(*given)
        used = torch.autograd.grad(result, given, allow_unused=True)
        return [result.detach(), *(grad for grad in used if grad is not None)]

    before = make_fx(gradients, tracing_mode="fake")(*inputs)
    before.graph.eliminate_dead_code()
    after = copy.deepcopy(before)
    SharedProducts(**options)(after.graph)
    after.graph.lint()
    after.recompile()
    return before, after


def products(module: fx.GraphModule) -> int:
    return sum(node.target in PRODUCTS for node in module.graph.nodes)


def same(before: fx.GraphModule, after: fx.GraphModule, inputs: list[Tensor]) -> None:
    plain = [tensor.detach() for tensor in inputs]
    for mine, want in zip(after(*plain), before(*plain), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-11, atol=1e-12)


def two_batches(x, c, kernel, offset, weight, bias):
    total = 0.0
    for value in (x, c):
        value = F.conv2d(value, kernel, offset, stride=2, padding=1).relu()
        value = F.linear(value.flatten(1), weight, bias)
        total = total + value.sin().sum()
    return total


def shapes(rng: torch.Generator | None = None):
    def draw(low: int, high: int) -> int:
        return low if rng is None else int(torch.randint(low, high, (1,), generator=rng))

    batch, few, channels, size = draw(5, 8), draw(2, 8), draw(2, 4), draw(6, 9)
    features = channels * ((size - 1) // 2 + 1) ** 2
    kernel = (channels, 1, 3, 3)
    images = ((batch, 1, size, size), (few, 1, size, size))
    return (*images, kernel, (channels,), (4, features), (4,))


def test_text(golden):
    before, after = joined(two_batches, tensors(*shapes()))
    assert (products(before), products(after)) == (10, 5)
    golden("passes/shared_products.txt", f"# before\n{before.graph}\n# after\n{after.graph}")


@pytest.mark.parametrize("seed", range(4))
def test_the_same_numbers(seed):
    inputs = tensors(*shapes(torch.Generator().manual_seed(seed)), seed=seed)
    before, after = joined(two_batches, inputs)
    assert products(after) < products(before)
    same(before, after, inputs)


def test_three_batches():
    def three(x, c, d, weight):
        return sum(F.linear(F.linear(v, weight).tanh(), weight).cos().sum() for v in (x, c, d))

    inputs = tensors((3, 4), (5, 4), (2, 4), (4, 4))
    before, after = joined(three, inputs)
    assert products(after) < products(before)
    same(before, after, inputs)


def test_a_square_weight_used_both_ways():
    """A gradient that is turned is no term like one that is not."""

    def both(x, c, weight):
        return (x @ weight).sin().sum() + (c @ weight.t()).cos().sum() + (x @ weight.t()).sum()

    inputs = tensors((3, 4), (5, 4), (4, 4))
    before, after = joined(both, inputs)
    same(before, after, inputs)


def test_a_sequence_stays_a_sequence():
    def steps(x, weight):
        first = F.linear(x, weight).tanh()
        return F.linear(first, weight).sin().sum()

    inputs = tensors((3, 4), (4, 4))
    before, after = joined(steps, inputs)
    same(before, after, inputs)


def test_a_bias_of_each_row_is_not_shared():
    def rows(x, c, offset, weight):
        return (torch.addmm(offset, x, weight).sin() + torch.addmm(offset, c, weight).cos()).sum()

    inputs = tensors((3, 4), (3, 4), (3, 5), (4, 5))
    before, after = joined(rows, inputs)
    same(before, after, inputs)


def test_large_inputs_and_strided_ones_stay():
    def through(x, c, kernel, *_):
        return F.conv2d(x, kernel).sin().sum() + F.conv2d(c, kernel).cos().sum()

    inputs = tensors(*shapes())
    before, after = joined(through, inputs, copied=100)
    assert products(after) == products(before)
    strided = [
        t.detach().to(memory_format=torch.channels_last if t.dim() == 4 else torch.preserve_format)
        for t in tensors((5, 3, 7, 7), (2, 3, 7, 7), (2, 3, 3, 3))
    ]
    strided = [tensor.requires_grad_() for tensor in strided]
    before, after = joined(through, strided)
    assert products(after) == products(before)


def backend(seen: list[int]):
    """Eager execution of the graphs that the pass leaves, as a backend of torch.compile."""

    def cut(module, inputs, **options):
        SharedProducts()(module.graph)
        return min_cut_rematerialization_partition(module, inputs, **options)

    def run(module, _):
        seen.append(products(module))
        return module

    def whole(module, _):
        SharedProducts()(module.graph)
        module.recompile()
        return run(module, _)

    return aot_autograd(fw_compiler=run, inference_compiler=whole, partition_fn=cut)


def mixed(method: str) -> tuple[MixedLoss, Tensor, Tensor]:
    torch.manual_seed(0)
    loss_fn = MixedLoss(Residual().double(), 0.05, method=method, subset=3, seed=0)
    loss_fn.tune_for = "cuda"
    return loss_fn, torch.rand(6, 1, 6, 6, dtype=torch.float64), torch.arange(6) % 4


@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_a_loss_cut_into_forward_and_backward(method):
    loss_fn, x, y = mixed(method)
    loss_fn.prepare(x, y)
    index, seen = torch.tensor([4, 0, 1]), []

    def compute(x, y, index):
        return loss_fn.compute(x, y, index).loss

    found = {}
    for name, fn in (("mine", torch.compile(compute, backend=backend(seen))), ("eager", compute)):
        loss_fn.model.zero_grad()
        fn(x, y, index).backward()
        found[name] = [p.grad.clone() for p in loss_fn.model.parameters()]
    assert len(seen) == 2
    for mine, want in zip(found["mine"], found["eager"], strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-9, atol=1e-11)


def test_a_whole_step_writes_after_it_read():
    weights = {}
    for name in ("eager", "joined"):
        loss_fn, x, y = mixed("ibp")
        optimizer = torch.optim.SGD(loss_fn.model.parameters(), 0.1, momentum=0.9)
        how = None if name == "eager" else backend([])
        step = compile_step(loss_fn.model, optimizer, loss_fn, backend=how)
        for _ in range(3):
            step(x, y)
        assert name == "eager" or step.mode == "whole"
        weights[name] = [p.detach().clone() for p in loss_fn.model.parameters()]
    for mine, want in zip(weights["joined"], weights["eager"], strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-8, atol=1e-10)


def test_it_is_a_setting_of_a_step_and_not_a_global_one():
    import torch._inductor.config as config

    chosen = cuda_options()["joint_custom_pre_pass"]
    assert isinstance(chosen, SharedProducts)
    assert chosen.uuid() == SharedProducts().uuid() != SharedProducts(1).uuid()
    assert config.joint_custom_pre_pass is None
