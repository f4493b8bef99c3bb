"""Mixtures by a gate: what becomes one op, what stays, and what that is worth."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.domains import Interval
from boundgraph.domains.linear_form import LinearForm
from boundgraph.ops import get
from boundgraph.relaxations.bilinear import flattest
from boundgraph.testing import check_model


class Gated(nn.Module):
    """A gate between two layers."""

    def __init__(self, mix: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.mix = mix
        self.gate, self.one, self.two = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.sigmoid(self.gate(x)), torch.tanh(self.one(x)), self.two(x))


MIXTURES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "shares": lambda w, a, b: w * b + (1 - w) * a,
    "shares, turned": lambda w, a, b: a * (1.0 - w) + b * w,
    "highway": lambda w, a, b: (1 - w) * a + b * w,
    "moves": lambda w, a, b: a + w * (b - a),
    "moves, turned": lambda w, a, b: (b - a) * w + a,
    "lerp": lambda w, a, b: torch.lerp(a, b, w),
}
OTHERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "another weight": lambda w, a, b: w * b + (1 - a) * a,
    "not one": lambda w, a, b: w * b + (2 - w) * a,
    "another start": lambda w, a, b: a + w * (b - w),
    "a fixed weight": lambda w, a, b: a + 0.25 * (b - a),
    "broadcast": lambda w, a, b: w[:, :1] * b + (1 - w[:, :1]) * a,
}


def _made(mix: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[nn.Module, bg.LinfBall]:
    torch.manual_seed(0)
    return Gated(mix).double().eval(), bg.LinfBall(torch.randn(3, 4).double(), eps=0.5)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_stays_between_what_it_mixes(name: str) -> None:
    model, region = _made(MIXTURES[name])
    program = bg.compile(model, region)
    assert "interval.blend" in {node.op for node in program.ir.nodes}
    check_model(model, region, methods=("ibp", "symbolic", "crown-ibp", "crown"), points=16)
    bounds = program(region)
    ends = [_ends(model, region, pick) for pick in (lambda w, a, b: a, lambda w, a, b: b)]
    slack = 1e3 * torch.finfo(torch.float64).eps
    low, high = torch.minimum(ends[0][0], ends[1][0]), torch.maximum(ends[0][1], ends[1][1])
    assert bool((bounds.lower >= low - slack).all())
    assert bool((bounds.upper <= high + slack).all())


def _ends(
    model: nn.Module, region: bg.LinfBall, pick: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    side = Gated(pick).double()
    side.load_state_dict(model.state_dict())
    bounds = bg.bound(side.eval(), method="ibp")(region)
    return bounds.lower, bounds.upper


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_mixture_stays(name: str) -> None:
    model, region = _made(OTHERS[name])
    ops = {node.op for node in bg.compile(model, region).ir.nodes}
    assert "interval.blend" not in ops
    check_model(model, region, methods=("ibp", "crown"), points=9)


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_planes_of_a_product(upper: bool, dtype: torch.dtype) -> None:
    """Each plane is on its side at the corners, and no end of the box is worse than of another."""
    generator = torch.Generator().manual_seed(5)
    center = torch.randn(2, 4000, generator=generator, dtype=dtype)
    radius = torch.rand(2, 4000, generator=generator, dtype=dtype) * torch.arange(4000) % 3
    x, y = (Interval(c - r, c + r) for c, r in zip(center, radius.to(dtype), strict=True))
    plane = flattest(x, y, upper=upper)
    size = torch.maximum(x.lower.abs(), x.upper.abs()) * torch.maximum(y.lower.abs(), y.upper.abs())
    allowed = 16 * torch.finfo(dtype).eps * size
    for a in (x.lower, x.upper):
        for b in (y.lower, y.upper):
            gap = a * b - (plane.left * a + plane.right * b + plane.offset)
            assert bool(((-gap if upper else gap) >= -allowed).all())


def test_a_gradient_and_a_width_of_zero() -> None:
    spec = get("blend")
    assert spec is not None and spec.backward is not None and spec.interval is not None
    ends = [torch.tensor([[0.0, 1.0, -2.0]], requires_grad=True) for _ in range(3)]
    sides = [Interval(v, v) for v in ends]
    form = LinearForm(torch.tensor([[[1.0, -1.0, 0.0]]]))
    for operand in range(3):
        found = spec.backward(
            form,
            *sides,
            operand=operand,
            carry=operand == 0,
            sample_dims=(2,),
            shapes=(),
            target=(),
        )
        found.coeff.sum().backward(retain_graph=True)
    interval = spec.interval(*sides)
    assert torch.equal(interval.lower, spec.concrete(*ends))
    assert torch.equal(interval.upper, spec.concrete(*ends))
    (interval.upper - interval.lower).sum().backward()
    assert all(v.grad is not None and bool(v.grad.isfinite().all()) for v in ends)


def test_a_gru_is_much_tighter_than_its_products() -> None:
    """What the rules are worth (`docs/relaxations.md`)."""
    torch.manual_seed(0)
    gru = nn.GRU(4, 8, batch_first=True)

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = gru

        def forward(self, x: Tensor) -> Tensor:
            return self.gru(x)[0][:, -1]

    region = bg.LinfBall(torch.randn(2, 5, 4), eps=0.1)
    model = Hidden().eval()
    bounds = bg.bound(model, method="ibp")(region)
    # A state is a mixture of values of tanh.
    assert float(bounds.lower.min()) >= -1.0 - 1e-5
    assert float(bounds.upper.max()) <= 1.0 + 1e-5
