"""Forms through relu with a gradient written by hand: against automatic differentiation."""

from __future__ import annotations

import copy

import pytest
import torch
from relu_forms import network, plain
from torch import Tensor

import boundgraph as bg
from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm
from boundgraph.domains.relu_rows import UNROLLED, relu_form
from boundgraph.training.losses import MixedLoss


def compiled(device: str) -> bg.BoundProgram:
    region = bg.LinfBall(torch.zeros(2, 1, 4, 4, dtype=torch.float64), 0.1)
    options = {"method": "crown-ibp", "spec": bg.Margin(3), "lower_only": True}
    return bg.compile(network(), region, tune_for=device, **options)


def test_text(golden):
    before, after = compiled("cpu"), compiled("cuda")
    assert "relu-rows" in [record.name for record in after.records]
    golden("passes/relu_rows.txt", f"# before\n{before.ir}\n# after\n{after.ir}")


@pytest.mark.parametrize("features", [(5,), (2, 3), (2, 2, 3)])
@pytest.mark.parametrize("rows", [1, 3, UNROLLED + 1])
@pytest.mark.parametrize("biased", [True, False])
def test_equals_automatic_differentiation(features, rows, biased):
    generator = torch.Generator().manual_seed(rows)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    center, radius = draw(4, *features), draw(4, *features).abs()
    coeff, offset, bias = draw(rows, 4, *features), draw(rows, 4), draw(features[0])
    weights = draw(rows, 4, *features), draw(rows, 4)
    found = []
    for by_hand in (True, False):
        leaves = [t.clone().requires_grad_() for t in (coeff, center, radius, offset, bias)]
        pre = Interval.from_center_radius(leaves[1], leaves[2])
        form, own = LinearForm(leaves[0], leaves[3]), leaves[4] if biased else None
        if by_hand:
            new = relu_form(form, pre, *([] if own is None else [own]))
        else:
            new = plain(form, pre, own)
        total = (new.coeff * weights[0]).sum() + (new.offset * weights[1]).sum()
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
        found.append((new.coeff, new.offset, *(g for g in grads if g is not None)))
    assert len(found[0]) == len(found[1]) == 6 + biased
    for mine, want in zip(*found, strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-9, atol=1e-12)


def test_lines_hold_for_units_of_every_kind():
    """Dead, active, crossing, of no width at 0 and elsewhere: relu lies above what is returned."""
    ends = torch.tensor(
        [[-2, -1], [1, 3], [-1, 2], [-3, 1], [0, 0], [2, 2], [-2, 0], [0, 2], [-1e-30, 1e30]],
        dtype=torch.float64,
    )
    lower, upper = ends.T.unsqueeze(1)
    for sign in (1.0, -1.0):
        coeff = torch.full((1, 1, len(ends)), sign, dtype=torch.float64)
        new = relu_form(LinearForm(coeff), Interval(lower, upper))
        for share in torch.linspace(0, 1, 9, dtype=torch.float64):
            x = lower + share * (upper - lower)
            # A few roundings of products and sums no larger than the interval itself.
            slack = 8 * torch.finfo(torch.float64).eps * torch.maximum(upper.abs(), lower.abs())
            bound = (new.coeff * x).sum(2) + new.offset
            assert bool((bound <= (coeff * x.relu()).sum(2) + slack.sum(1)).all())


def test_a_nan_bound_is_kept():
    nan = torch.tensor([[float("nan"), 1.0]])
    for lower, upper in ((nan, nan.abs() + 1), (nan - 1, nan)):
        coeff = torch.ones(1, 1, 2)
        new = relu_form(LinearForm(coeff), Interval(lower, upper))
        assert bool((new.coeff.sum() + new.offset).isnan().all())


def test_the_same_bounds_and_training_gradients():
    x, y = torch.rand(6, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (6,))
    region = bg.LinfBall(x, 0.1)
    cpu, cuda = (compiled(device)(region, labels=y).lower for device in ("cpu", "cuda"))
    torch.testing.assert_close(cuda, cpu, rtol=1e-12, atol=1e-12)
    for options in ({}, {"fused": True}):
        grads = []
        for device in ("cpu", "cuda"):
            model = copy.deepcopy(network())
            loss_fn = MixedLoss(model, 0.1, method="crown-ibp", subset=None, **options)
            loss_fn.tune_for = device
            loss_fn(x, y).backward()
            assert ("relu_rows" in str(loss_fn.program.ir)) == (device == "cuda")
            grads.append([p.grad for p in model.parameters()])
        for mine, want in zip(*grads, strict=True):
            torch.testing.assert_close(mine, want, rtol=1e-6, atol=1e-10)


def test_a_second_gradient_is_refused():
    coeff = torch.ones(1, 1, 2, requires_grad=True)
    new = relu_form(LinearForm(coeff), Interval(-torch.ones(1, 2), torch.ones(1, 2)))
    (grad,) = torch.autograd.grad(new.offset.sum() ** 2, coeff, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
