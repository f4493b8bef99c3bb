"""Dropout: one mask for the clean pass and the bounds, also in a compiled step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import boundgraph as bg
from boundgraph.errors import ConfigError, UnsupportedError
from boundgraph.testing import check_model
from boundgraph.training._dropout import Masked, draw_masks


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.Dropout2d(0.3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(8, 3),
    )


@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_bounds_of_a_sample_take_the_masks_of_its_clean_pass(method: str) -> None:
    model, x = network(), torch.rand(6, 1, 4, 4)
    loss = bg.training.MixedLoss(model, eps=0.0, method=method, subset=3)
    labels, index = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([4, 0, 2])
    loss.prepare(x, labels)
    loss.set(alpha=1.0)
    parts = loss(x, labels, return_parts=True, index=index)
    torch.manual_seed(3)
    first = loss(x, labels, return_parts=True, index=index)
    torch.manual_seed(3)
    again = loss(x, labels, return_parts=True, index=index)
    assert float(first.loss) == float(again.loss) != float(parts.loss)
    # Regions of no width: the bound loss is the clean loss of the chosen samples, mask by mask.
    torch.manual_seed(3)
    masked = Masked(copy.deepcopy(model))
    logits = masked(x, *draw_masks(masked.calls(x[:2]), x))
    expected = nn.functional.cross_entropy(logits[index], labels[index])
    torch.testing.assert_close(again.bound_loss, expected.detach())


def test_bounds_enclose_under_the_masks() -> None:
    """The same as of the network with these masks and the clean batch's statistics."""
    model, x = network(), torch.rand(5, 1, 4, 4)
    loss = bg.training.MixedLoss(model, eps=0.1, method="ibp", subset=None)
    labels = torch.zeros(5, dtype=torch.long)
    loss.prepare(x, labels)
    masks = draw_masks(loss._cache.masks, x)
    margins, clean, *_ = loss.program.run((loss.region(x), *masks), labels, (x, *masks))
    masked = Masked(model)
    held: list[torch.Tensor] = []
    handle = masked.inner[5].register_forward_pre_hook(lambda _, args: held.append(args[0]))
    torch.testing.assert_close(clean, masked(x, *masks))
    handle.remove()
    masked.inner[5].eval()
    masked.inner[5].running_mean = held[0].mean(0).detach()
    masked.inner[5].running_var = held[0].var(0, unbiased=False).detach()
    region = bg.LinfBall(x, 0.1, clip=(0.0, 1.0))
    check_model(masked, region, *masks, methods=("ibp", "crown-ibp"), points=12)
    spec = bg.Margin(3)
    again = bg.compile(masked, region, *masks, spec=spec)(region, *masks, labels=labels)
    torch.testing.assert_close(margins.lower, again.lower)


@pytest.mark.parametrize("drops", [False, True])
def test_a_compiled_step_moves_statistics_once(drops: bool) -> None:
    model = network()
    if not drops:
        model[1], model[7] = nn.Identity(), nn.Identity()
    plain = copy.deepcopy(model)
    x, labels = torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = bg.training.MixedLoss(model, eps=0.1, subset=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = bg.training.compile_step(model, optimizer, loss, backend="aot_eager")
    for _ in range(2):
        step(x, labels)
        plain(x)
    assert not step.reason, step.reason
    assert int(model[5].num_batches_tracked) == 2
    if not drops:
        torch.testing.assert_close(model[5].running_mean, plain[5].running_mean)
        torch.testing.assert_close(model[5].running_var, plain[5].running_var)


def test_statistics_move_once_and_gradients_flow() -> None:
    model, x = network(), torch.rand(6, 1, 4, 4)
    loss = bg.training.MixedLoss(model, eps=0.1, subset=3)
    loss(x, torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    assert int(model[5].num_batches_tracked) == 1
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_evaluation_and_certification_drop_nothing() -> None:
    model = network()
    with pytest.raises(UnsupportedError):
        bg.bound(model, method="ibp")(bg.LinfBall(torch.rand(2, 1, 4, 4), 0.1))
    model.eval()
    loss = bg.training.MixedLoss(model, eps=0.1, subset=3)
    x, labels = torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    index = torch.tensor([0, 3, 4])
    assert float(loss(x, labels, index=index)) == float(loss(x, labels, index=index))
    assert not loss._cache.masks


def test_what_cannot_share_a_mask_is_refused() -> None:
    x, labels = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    loss = bg.training.MixedLoss(network(), eps=0.1, method="crown-ibp", fused=True)
    with pytest.raises(ConfigError, match="dropout"):
        loss(x, labels)
