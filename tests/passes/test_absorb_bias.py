"""Biases that batch normalisation takes away, and normalisation that merges with no layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from boundgraph.frontends.capture import capture
from boundgraph.ops._infer import RegistryTable
from boundgraph.passes import AbsorbBias, CleanStatistics, FoldBatchNorm, run_pipeline
from boundgraph.training.losses import MixedLoss


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(),
        nn.Linear(48, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3),
    ).double()  # fmt: skip


class PreActivation(nn.Module):
    """Batch normalisation in front of the layers, so that it merges with none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        z = self.second(torch.relu(self.norm(y))) + y
        return self.last(z.flatten(1))


def test_text(golden):
    program = capture(network().train(), (torch.rand(2, 1, 4, 4).double(),), {}).program
    program, _ = run_pipeline(program, (CleanStatistics(keep=True),), RegistryTable())
    after, (record,) = run_pipeline(program, (AbsorbBias(),), RegistryTable())
    golden("passes/absorb_bias.txt", f"# {record.name}\n# before\n{program}\n# after\n{after}")
    assert AbsorbBias().run(after) is after


def losses(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    loss = MixedLoss(model, 0.05, subset=4, seed=0)(x, y)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def test_equal_loss_gradients_and_running_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.rand(8, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (8,))
    model, plain = network(), network()
    loss, grads = losses(model, x, y)
    monkeypatch.setattr(AbsorbBias, "run", lambda self, program: program)
    expected, want = losses(plain, x, y)
    torch.testing.assert_close(loss, expected)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, want[name], msg=name)
    # Exactly zero, as it is in real arithmetic.
    assert not grads["0.bias"].any()
    assert not grads["4.bias"].any()
    for mine, torchs in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, torchs)


@pytest.mark.parametrize("make", [network, PreActivation])
def test_unmerged_normalisation_is_trained(
    make: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics of a wide layer, or of no layer, have gradients: against finite differences."""
    x, y = torch.rand(6, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (6,))
    monkeypatch.setattr(FoldBatchNorm.__init__, "__defaults__", (4, True))
    model = make().double()
    _, grads = losses(copy.deepcopy(model), x, y)
    name, parameter = next(iter(model.named_parameters()))
    step = 1e-6
    index = (0,) * parameter.dim()
    ends = []
    for sign in (1.0, -1.0):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            dict(moved.named_parameters())[name][index] += sign * step
        ends.append(losses(moved, x, y)[0])
    slope = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(grads[name][index], slope, rtol=1e-6, atol=1e-8)
