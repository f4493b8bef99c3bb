"""Products of two bounded values: every spelling, every method, exact where they can be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.domains import Interval
from boundgraph.errors import UnsupportedError
from boundgraph.ops import get
from boundgraph.testing import check_model

METHODS = ("ibp", "symbolic", "mix", "crown-ibp", "crown")
W = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

SPELLINGS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "matmul": (torch.matmul, (2, 3, 4), (2, 4, 2)),
    "operator": (lambda a, b: a @ b, (2, 1, 3, 4), (2, 5, 4, 2)),
    "method": (lambda a, b: a.matmul(b.transpose(1, 2)), (2, 3, 4), (2, 5, 4)),
    "bmm": (torch.bmm, (2, 3, 4), (2, 4, 2)),
    "vector": (lambda a, b: torch.matmul(a, b.unsqueeze(-1)).squeeze(-1), (2, 3, 4), (2, 4)),
    "baddbmm": (lambda a, b: torch.baddbmm(a, a, b, beta=0.5, alpha=2.0), (2, 3, 3), (2, 3, 3)),
    "constant on the right": (lambda a, b: a @ W + b, (2, 2, 4), (2, 1, 3)),
    "constant on the left": (lambda a, b: W.T @ a + b, (2, 4, 2), (2, 3, 2)),
    "scores": (lambda a, b: torch.einsum("bhqd,bhkd->bhqk", a, b), (2, 2, 3, 4), (2, 2, 5, 4)),
    "two contracted": (lambda a, b: torch.einsum("bijk,bjk->bi", a, b), (2, 3, 2, 2), (2, 2, 2)),
    "batch last": (lambda a, b: torch.einsum("bi,bj->jib", a, b), (2, 3), (2, 4)),
    "constant first": (lambda a, b: torch.einsum("oi,bi->bo", W, a) + b, (2, 3), (2, 4)),
    "three factors": (lambda a, b: torch.einsum("bi,io,bo->b", a, W, b), (2, 4), (2, 3)),
    "dots": (lambda a, b: torch.einsum("...i,...i", a, b), (2, 3, 4), (2, 3, 4)),
    "one operand": (lambda a, b: torch.einsum("bij->bj", a) * b, (2, 3, 4), (2, 4)),
    "linear with a bounded weight": (
        lambda a, b: torch.nn.functional.linear(a.unsqueeze(1), W.T) @ b,
        (2, 4),
        (2, 3, 2),
    ),
}


class Two(nn.Module):
    def __init__(self, fn: Callable[..., Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.fn(a, torch.tanh(b))


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_enclosed(name: str) -> None:
    fn, *shapes = SPELLINGS[name]
    generator = torch.Generator().manual_seed(1)
    boxes = []
    for shape in shapes:
        center = torch.randn(shape, generator=generator, dtype=torch.float64)
        width = torch.rand(shape, generator=generator, dtype=torch.float64)
        boxes.append(bg.Box(center - width, center + width))
    check_model(Two(fn), *boxes, methods=METHODS, points=20)


def test_symbolic_and_crown_agree_on_a_product() -> None:
    """The mean of McCormick's planes is what symbolic intervals compute going forward."""
    torch.manual_seed(0)
    center = torch.randn(2, 3, 4, dtype=torch.float64)
    box = bg.Box(center - 0.3, center + 0.3)
    model = Gram()
    one, other = (bg.bound(model, method=method)(box) for method in ("symbolic", "crown"))
    torch.testing.assert_close(one.lower, other.lower)
    torch.testing.assert_close(one.upper, other.upper)


class Gram(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.transpose(1, 2)).flatten(1)


@pytest.mark.parametrize("straddles", [False, True])
def test_the_interval_of_a_single_product(straddles: bool) -> None:
    """Exact unless both factors straddle 0, and never narrower than the hull."""
    spec = get("matmul")
    assert spec is not None and spec.interval is not None
    generator = torch.Generator().manual_seed(0)

    def draw() -> tuple[Tensor, Tensor]:
        first, second = (
            torch.randn(2000, 1, 1, generator=generator, dtype=torch.float64) for _ in range(2)
        )
        return torch.minimum(first, second), torch.maximum(first, second)

    (al, au), (bl, bu) = draw(), draw()
    if not straddles:
        al, au = torch.where(al * au < 0, 0.0, al), torch.where(al * au < 0, au.abs(), au)
    found = spec.interval(Interval(al, au), Interval(bl, bu))
    corners = torch.stack([al * bl, al * bu, au * bl, au * bu])
    slack = 16 * torch.finfo(torch.float64).eps * corners.abs().amax(0)
    low, high = corners.amin(0), corners.amax(0)
    assert (found.lower <= low + slack).all() and (high <= found.upper + slack).all()
    if straddles:
        inner = (high - low) / (found.upper - found.lower)
        assert inner.min() >= 0.5
    else:
        torch.testing.assert_close(found.lower, low)
        torch.testing.assert_close(found.upper, high)


def test_einsum_with_a_diagonal_is_refused() -> None:
    model = Two(lambda a, b: torch.einsum("bii->b", a) + b)
    box = bg.Box(torch.zeros(2, 3, 3), torch.ones(2, 3, 3))
    with pytest.raises(UnsupportedError, match="diagonal"):
        bg.bound(model)(box, bg.Box(torch.zeros(2), torch.ones(2)))
