"""Intervals, regions, specifications and zonotopes."""

from __future__ import annotations

import pytest
import torch

import boundgraph as bg
from boundgraph.domains import Interval, Symbolic, diagonal, hull, linf_interval, meet
from boundgraph.errors import NonFiniteError, RegionError, SpecError


def test_interval_forms_agree() -> None:
    lower, upper = torch.tensor([-1.0, 0.5]), torch.tensor([3.0, 0.5])
    ends, middle = (
        Interval(lower, upper),
        Interval.from_center_radius(torch.tensor([1.0, 0.5]), torch.tensor([2.0, 0.0])),
    )
    assert torch.equal(ends.center, middle.center) and torch.equal(ends.radius, middle.radius)
    assert torch.equal(ends.lower, middle.lower) and torch.equal(ends.upper, middle.upper)


def test_center_does_not_overflow() -> None:
    big = torch.tensor([3e38])
    box = Interval(-big, big)
    assert box.center.item() == 0.0 and torch.isfinite(box.radius).all()


def test_meet_and_hull() -> None:
    a, b = (
        Interval(torch.tensor([0.0]), torch.tensor([2.0])),
        Interval(torch.tensor([1.0]), torch.tensor([3.0])),
    )
    assert (meet(a, b).lower.item(), meet(a, b).upper.item()) == (1.0, 2.0)
    assert (hull(a, b).lower.item(), hull(a, b).upper.item()) == (0.0, 3.0)
    gap = meet(Interval.point(torch.tensor([1.0])), Interval.point(torch.tensor([1.5])))
    assert (gap.lower.item(), gap.upper.item()) == (1.0, 1.5)
    nan = Interval.point(torch.tensor([torch.nan]))
    assert meet(a, nan).lower.isnan().all() and meet(nan, a).upper.isnan().all()


@pytest.mark.parametrize("batch_dim", [0, 1, 2, None])
def test_diagonal_has_one_symbol_per_element(batch_dim: int | None) -> None:
    values = torch.rand(2, 3, 4) + 0.1
    features = tuple(s for i, s in enumerate(values.shape) if i != batch_dim)
    block = diagonal(values, batch_dim, features)
    assert torch.equal(block.abs().sum(0), values)
    expected = values.numel() if batch_dim is None else values.numel() // values.shape[batch_dim]
    assert block.shape == (expected, 2, 3, 4)
    # A symbol moves one element of each sample.
    moved = (block != 0).flatten(1).sum(1)
    assert (moved == (1 if batch_dim is None else values.shape[batch_dim])).all()


def test_shared_symbols_cancel() -> None:
    x = Symbolic(torch.tensor([1.0]), {"x": torch.tensor([[2.0]])})
    difference = x.combine(x, -1.0).concretize()
    assert difference.lower.item() == difference.upper.item() == 0.0
    other = Symbolic(torch.tensor([1.0]), {"y": torch.tensor([[2.0]])})
    assert x.combine(other, -1.0).concretize().upper.item() == 4.0
    with pytest.raises(ValueError, match="exists"):
        x.with_block("x", torch.ones(1, 1))


def test_linf_ball_is_cut_to_clip() -> None:
    center = torch.tensor([[0.0, 0.5, 1.0]])
    box = bg.LinfBall(center, eps=0.1, clip=(0.0, 1.0)).interval()
    assert torch.equal(box.lower, torch.tensor([[0.0, 0.4, 0.9]]))
    assert torch.equal(box.upper, torch.tensor([[0.1, 0.6, 1.0]]))
    unchecked = linf_interval(center, 0.1, (0.0, 1.0))
    assert torch.equal(unchecked.lower, box.lower)


def test_eps_keeps_the_dtype_of_the_centre() -> None:
    eps = torch.tensor([[0.1], [0.0]], dtype=torch.float64)
    ball = bg.LinfBall(torch.zeros(2, 3), eps)
    assert ball.lower.dtype == torch.float32
    assert torch.equal(ball.lower[1], ball.upper[1])


NAN, INF = float("nan"), float("inf")
BAD_REGIONS = [
    (lambda: bg.Box(torch.ones(2), torch.zeros(2)), RegionError, "lower > upper"),
    (lambda: bg.Box(torch.ones(2), torch.ones(3)), RegionError, "differ"),
    (lambda: bg.Box(torch.tensor([NAN]), torch.ones(1)), NonFiniteError, "NaN"),
    (lambda: bg.Box(torch.ones(1), torch.tensor([INF])), NonFiniteError, "infinite"),
    (lambda: bg.Box(torch.ones(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)),
     RegionError, "floating"),
    (lambda: bg.LinfBall(torch.zeros(2), -0.1), RegionError, ">= 0"),
    (lambda: bg.LinfBall(torch.zeros(2), torch.tensor([NAN, 0.0])), NonFiniteError, "eps"),
    (lambda: bg.LinfBall(torch.zeros(2, 3), torch.ones(4)), RegionError, "broadcast"),
    (lambda: bg.LinfBall(torch.zeros(3), torch.ones(2, 3)), RegionError, "broadcast"),
    (lambda: bg.LinfBall(torch.full((2,), 2.0), 0.1, clip=(0.0, 1.0)), RegionError, "clip"),
    (lambda: bg.LinfBall(torch.zeros(2), 0.1, clip=(1.0, 0.0)), RegionError, "clip"),
    (lambda: bg.Margin(1), SpecError, "at least 2"),
    (lambda: bg.LinearSpec(torch.ones(3)), SpecError, "2-d or 3-d"),
    (lambda: bg.LinearSpec(torch.tensor([[NAN]])), NonFiniteError, "NaN"),
    (lambda: bg.LinearSpec(torch.ones(2, 3), torch.ones(3)), SpecError, "offset"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "text"), BAD_REGIONS)
def test_malformed_regions_are_refused(make: object, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        make()  # type: ignore[operator]


def test_labels_are_checked() -> None:
    margin = bg.Margin(3)
    for labels in (torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.tensor([0.0, 1.0]),
                   torch.tensor([0]), torch.tensor([True, False])):  # fmt: skip
        with pytest.raises(SpecError):
            margin.check_labels(labels, 2)


def test_a_matrix_for_each_sample_needs_as_many() -> None:
    spec = bg.LinearSpec(torch.ones(2, 1, 3))
    spec.check_batch(2)
    with pytest.raises(SpecError, match="2 matrices"):
        spec.check_batch(3)
