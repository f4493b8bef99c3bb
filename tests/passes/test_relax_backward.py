"""Backward linear bounds: laws that hold whatever the network."""

import pytest
import torch
from torch import nn

from boundgraph.compiler import bound, compile
from boundgraph.domains.regions import Box, LinfBall
from boundgraph.domains.specs import LinearSpec, Margin
from boundgraph.passes.relax_backward import RelaxBackward
from boundgraph.runtime.optimized import SlopeSearch


class Branches(nn.Module):
    """Residual addition, concatenation, pooling, normalisation and a product of two values."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.head = nn.Linear(2 * 36 + 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.relu(self.norm(self.first(x)))
        b = a + torch.tanh(self.second(a)) * torch.sigmoid(a)
        pooled = nn.functional.max_pool2d(b, 3, 2, 1)
        up = self.up(pooled).flatten(1)
        return self.head(torch.cat([up, b.mean((2, 3))], 1)) - 0.5


@pytest.fixture
def branches() -> nn.Module:
    torch.manual_seed(0)
    return Branches().double().eval()


def corners_and_points(box: Box, count: int) -> torch.Tensor:
    share = torch.rand(count, *box.shape, dtype=box.lower.dtype)
    share[: count // 2] = share[: count // 2].round()
    return box.lower + share * (box.upper - box.lower)


@pytest.mark.parametrize("method", ["crown-ibp", "crown", "alpha-crown"])
@pytest.mark.parametrize("dynamic", [None, False])
def test_encloses_a_network_of_many_ops(
    branches: nn.Module, method: str, dynamic: bool | None
) -> None:
    center = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    box = Box(center - 0.05, center + 0.1 * torch.rand_like(center))
    found = bound(branches, method=method, dynamic_batch=dynamic)(box)
    outputs = torch.stack([branches(point) for point in corners_and_points(box, 60)])
    slack = 1e4 * torch.finfo(torch.float64).eps * outputs.abs().max()
    assert bool((found.lower <= outputs + slack).all())
    assert bool((outputs <= found.upper + slack).all())


def test_a_zero_width_region_gives_the_value(branches: nn.Module) -> None:
    x = torch.rand(3, 1, 6, 6, dtype=torch.float64)
    found = bound(branches, method="crown")(Box(x, x))
    torch.testing.assert_close(found.lower, branches(x))
    torch.testing.assert_close(found.upper, branches(x))


def test_samples_do_not_meet(branches: nn.Module) -> None:
    x = torch.rand(3, 1, 6, 6, dtype=torch.float64)
    together = bound(branches, method="crown")(LinfBall(x, 0.05))
    for i in range(3):
        alone = bound(branches, method="crown")(LinfBall(x[i : i + 1], 0.05))
        torch.testing.assert_close(together.lower[i : i + 1], alone.lower)


def relu_network() -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)]
    return nn.Sequential(*layers).double()


def test_alpha_is_never_looser_than_crown_and_mostly_tighter() -> None:
    model, x = relu_network(), torch.randn(8, 6, dtype=torch.float64)
    crown = bound(model, method="crown")(LinfBall(x, 0.5))
    alpha = bound(model, method="alpha-crown")(LinfBall(x, 0.5))
    assert bool((alpha.lower >= crown.lower).all() and (alpha.upper <= crown.upper).all())
    assert float(alpha.width.mean()) < 0.99 * float(crown.width.mean())


def test_alpha_works_where_the_caller_switched_gradients_off() -> None:
    program = compile(relu_network(), Box(*torch.zeros(2, 1, 6).double()), method="alpha-crown")
    program.search = SlopeSearch(iterations=3)
    region = LinfBall(torch.ones(2, 6).double(), 0.3)
    with torch.no_grad():
        assert bool(torch.isfinite(program(region).lower).all())


def test_margins_are_tighter_than_differences_of_bounds() -> None:
    model, x = relu_network(), torch.randn(5, 6, dtype=torch.float64)
    region, labels = LinfBall(x, 0.2), torch.tensor([0, 1, 2, 3, 0])
    program = compile(model, region, method="crown-ibp", spec=Margin(4))
    margins = program(region, labels=labels)
    plain = bound(model, method="crown-ibp")(region)
    loose = plain.lower.gather(1, labels.unsqueeze(1)) - plain.upper
    others = torch.arange(4) != labels.unsqueeze(1)
    assert bool((margins.lower >= loose - 1e-12)[others].all())
    assert bool((margins.lower[~others] == 0).all())


def test_a_linear_spec_with_a_fixed_batch() -> None:
    model = relu_network()
    spec = LinearSpec(torch.eye(4).double(), torch.ones(4).double())
    region = LinfBall(torch.zeros(2, 6).double(), 0.1)
    fixed = compile(model, region, method="crown", spec=spec, dynamic_batch=False)(region)
    free = compile(model, region, method="crown", spec=spec)(region)
    torch.testing.assert_close(fixed.lower, free.lower)


def test_lower_only_has_the_same_lower_ends() -> None:
    model, region = relu_network(), LinfBall(torch.zeros(3, 6).double(), 0.2)
    both = compile(model, region, method="crown")(region)
    half = compile(model, region, method="crown", lower_only=True)(region)
    torch.testing.assert_close(both.lower, half.lower)
    assert bool(torch.isinf(half.upper).all())


def test_gradients_reach_the_parameters() -> None:
    model, region = relu_network(), LinfBall(torch.zeros(3, 6).double(), 0.2)
    compile(model, region, method="crown-ibp")(region).lower.sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())


def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Swap the lines that positive and negative coefficients take."""
    from boundgraph.domains.linear_form import LinearForm, Lines

    honest = LinearForm.through

    def swapped(self: LinearForm, lines: Lines, dims: tuple[int, ...]) -> LinearForm:
        wrong = Lines(lines.upper_slope, lines.upper_offset, lines.lower_slope, lines.lower_offset)
        return honest(self, wrong, dims)

    monkeypatch.setattr(LinearForm, "through", swapped)
    model, x = relu_network(), torch.randn(4, 6, dtype=torch.float64)
    box = Box(x - 0.5, x + 0.5)
    found = bound(model, method="crown")(box)
    outputs = torch.stack([model(point) for point in corners_and_points(box, 200)])
    assert bool((outputs < found.lower).any() or (outputs > found.upper).any())


def test_options_print() -> None:
    assert "intermediate=True" in str(RelaxBackward(("x",), intermediate=True))
