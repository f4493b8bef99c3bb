"""Softmax and log Σ exp: linear bounds that know that entries sum to one, and hidden entries."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm
from boundgraph.errors import NonFiniteError
from boundgraph.ops import get
from boundgraph.testing import check_model


class Of(nn.Module):
    """A function behind a layer, so that its operands are correlated."""

    def __init__(self, fn: object, size: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.fn = nn.Linear(4, size), fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.layer(x))  # type: ignore[no-any-return, operator]


def least(rows: Tensor, x: Interval) -> Tensor:
    """The least values of rows of a softmax over a box, by its backward rule."""
    spec = get("softmax")
    assert spec is not None and spec.backward is not None
    shape = tuple(x.lower.shape)
    form = spec.backward(
        LinearForm(rows),
        x,
        operand=0,
        carry=True,
        shapes=(shape,),
        target=shape,
        sample_dims=(2,),
        dim=1,
    )
    return form.lower_over(x, (2,))


def test_equal_coefficients_give_their_number() -> None:
    """Σ 3·softmax_i is 3, however wide the box is."""
    x = Interval(torch.full((2, 5), -30.0), torch.full((2, 5), 40.0))
    rows = torch.full((1, 2, 5), 3.0)
    torch.testing.assert_close(least(rows, x), torch.full((1, 2), 3.0))


def test_a_mean_of_numbers_lies_between_them() -> None:
    x = Interval(torch.full((1, 4), -0.4), torch.full((1, 4), 0.5))
    rows = torch.tensor([[[7.0, 7.1, 7.2, 7.3]]])
    assert 7.0 < float(least(rows, x)) < 7.15


@pytest.mark.parametrize("eps", [0.01, 0.1, 0.5])
def test_linear_bounds_are_tighter_than_intervals(eps: float) -> None:
    x = torch.randn(8, 4)
    for fn in (
        lambda x: x.softmax(1) @ torch.linspace(-1.0, 1.0, 6),
        lambda x: F.log_softmax(x, 1)[:, 0],
        lambda x: x.logsumexp(1),
    ):
        widths = []
        for method in ("ibp", "crown"):
            bounds = bg.bound(Of(fn), method=method)(bg.LinfBall(x, eps))
            widths.append(float((bounds.upper - bounds.lower).mean().detach()))
        assert widths[1] < widths[0]


def test_hidden_entries_have_a_weight_of_zero() -> None:
    mask = torch.tensor([0.0, -math.inf, 0.0, 0.0, -math.inf, 0.0])
    for fn in (
        lambda x: (x + mask.to(x.dtype)).softmax(1),
        lambda x: x.masked_fill(mask < 0, -math.inf).softmax(1),
        lambda x: (x + mask.to(x.dtype)).logsumexp(1),
        lambda x: F.log_softmax(x + mask.to(x.dtype), 1)[:, [0, 2, 3, 5]],
    ):
        region = bg.LinfBall(torch.randn(3, 4), 0.2)
        check_model(Of(fn), region, methods=("ibp", "symbolic", "crown-ibp", "crown"), points=12)
    bounds = bg.bound(Of(lambda x: (x + mask).softmax(1)), method="crown")(region)
    assert not bounds.lower[:, 1].any() and not bounds.upper[:, 1].any()


def test_large_scores_cannot_reach_what_is_hidden() -> None:
    """A mask of −1e9 would be undone by scores of that size."""
    layer = nn.MultiheadAttention(4, 1, batch_first=True)
    later = torch.triu(torch.ones(3, 3, dtype=torch.bool), 1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=~later)

    x = torch.randn(2, 3, 4) * 1e6
    bounds = bg.bound(Model(), method="ibp")(bg.Box(x, x))
    torch.testing.assert_close(bounds.lower, Model()(x))
    torch.testing.assert_close(bounds.upper, Model()(x))


def test_padding_only_has_weights_of_zero() -> None:
    """torch gives zeros for a query that sees nothing."""
    seen = torch.tensor([[True, True], [False, False]])

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=seen)

    region = bg.LinfBall(torch.randn(2, 2, 4), 0.1)
    bounds = bg.bound(Model(), method="crown")(region)
    assert not bounds.lower[:, 1].any() and not bounds.upper[:, 1].any()
    check_model(Model(), region, methods=("ibp", "crown"), points=8)


def test_infinity_is_refused_where_it_hides_nothing() -> None:
    for value, fn in (
        (-math.inf, lambda x, c: torch.relu(x + c)),
        (math.inf, lambda x, c: (x + c).softmax(1)),
        (math.nan, lambda x, c: (x + c).softmax(1)),
        (-math.inf, lambda x, c: (x * c).softmax(1)),
    ):
        constant = torch.tensor([value, 1.0, 1.0, 1.0, 1.0, 1.0])
        model = Of(lambda x, fn=fn, constant=constant: fn(x, constant))
        with pytest.raises(NonFiniteError):
            bg.bound(model, method="ibp")(bg.LinfBall(torch.randn(2, 4), 0.1))
