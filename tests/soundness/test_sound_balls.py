"""Rounding-sound bounds over balls of the 1- and 2-norm contain exact values of real points."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from exact_bounds import exact_program
from torch import nn

import boundgraph as bg
from boundgraph.domains.balls import BallInterval, norm_above
from boundgraph.domains.enclosure import enclosure
from boundgraph.domains.rounding import PRECISIONS
from boundgraph.domains.sound_form import SoundForm
from boundgraph.errors import ConfigError
from boundgraph.ops import _ball
from boundgraph.testing._exact import fractions, outside

METHODS = ("ibp", "crown-ibp", "crown")


def dense() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 3)
    )
    return model.eval(), torch.randn(2, 3, 4)


def convolution() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    return model.eval(), torch.randn(2, 1, 4, 4)


def affine() -> tuple[nn.Module, torch.Tensor]:
    """Bounds that some point of the ball attains."""
    torch.manual_seed(2)
    return nn.Linear(6, 8).eval(), torch.randn(1, 6)


def rational_point(ball: bg.LpBall, rng: random.Random) -> np.ndarray:
    """A real point of a ball: a tip, a point of a face or of the sphere, or further inside."""
    center, eps = fractions(ball.center), Fraction(ball.eps)
    out = center.copy().reshape(len(center), -1)
    for row in out:
        share = rng.choice((Fraction(1), Fraction(rng.randint(0, 30), 30)))
        i, j = rng.sample(range(len(row)), 2)
        a, b, c = rng.choice(((1, 0, 1), (3, 4, 5), (5, 12, 13), (20, 21, 29)))
        if ball.p == 1.0:
            c = a + b
        row[i] += rng.choice((-1, 1)) * share * eps * Fraction(a, c)
        row[j] += rng.choice((-1, 1)) * share * eps * Fraction(b, c)
    return out.reshape(center.shape)


def missed(model: nn.Module, ball: Any, method: str, points: int = 25) -> int:
    reference, rng = exact_program(model, [ball]), random.Random(0)
    bounds = bg.compile(model, ball, method=method, rounding="sound")(ball)
    found = 0
    for _ in range(points):
        (value,) = reference(rational_point(ball, rng))
        found += len(outside(value, bounds.lower.detach(), bounds.upper.detach()))
    return found


@pytest.mark.parametrize("norm", [1.0, 2.0])
@pytest.mark.parametrize("made", [dense, convolution, affine])
def test_contain_exact_values(made: Any, norm: float) -> None:
    model, center = made()
    for eps in (0.0, 1e-6, 0.3):
        for method in METHODS:
            assert missed(model, bg.LpBall(center, eps, norm), method) == 0, (eps, method)


@pytest.mark.parametrize("norm", [1.0, 2.0])
def test_little_wider_than_to_nearest_and_narrower_than_the_box(norm: float) -> None:
    model, center = dense()
    ball, box = bg.LpBall(center, 0.3, norm), bg.LinfBall(center, 0.3)
    for method in METHODS:
        plain = bg.compile(model, ball, method=method)(ball).width.sum()
        sound = bg.compile(model, ball, method=method, rounding="sound")(ball).width.sum()
        wide = bg.compile(model, box, method=method, rounding="sound")(box).width.sum()
        assert float(sound.detach()) < 1.001 * float(plain.detach()) < float(wide.detach())


def test_a_clip_cuts_the_box() -> None:
    model, center = dense()
    ball = bg.L2Ball(center.clamp(0.0, 1.0), 0.5, clip=(0.0, 1.0))
    box = enclosure(ball)
    assert isinstance(box, BallInterval)
    assert float(box.lower.min()) == 0.0
    assert bool((box.reach.double() >= 0.5).all())
    free = bg.L2Ball(ball.center, 0.5)
    for method in METHODS:
        cut = bg.compile(model, ball, method=method, rounding="sound")(ball)
        whole = bg.compile(model, free, method=method, rounding="sound")(free)
        assert float(cut.width.sum().detach()) <= 1.0001 * float(whole.width.sum().detach())


def test_norms_are_rounded_up() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        scale = 10.0 ** rng.integers(-42, 30)
        x = torch.tensor(rng.normal(size=9) * scale, dtype=torch.float32)
        exact = sum(v * v for v in fractions(x).reshape(-1))
        found = norm_above(x, 2.0, 0, 9, PRECISIONS["f32"])
        assert Fraction(float(found)) ** 2 >= exact
        assert float(found) <= 1.0001 * float(exact) ** 0.5 + 1e-25 or scale > 1e18


def test_other_norms_and_methods_are_refused() -> None:
    model, center = dense()
    with pytest.raises(ConfigError, match="not of the 3-norm"):
        bg.compile(model, bg.LpBall(center, 0.1, 3.0), rounding="sound")
    with pytest.raises(ConfigError, match="not with method 'mix'"):
        bg.compile(model, bg.L2Ball(center, 0.1), method="mix", rounding="sound")


def _smaller_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The norm of the ball itself instead of its dual."""
    monkeypatch.setattr(_ball, "dual", lambda norm: {1.0: 3.0, 2.0: float("inf")}[norm])


def _no_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ball whose clip moved the box's centre is taken for one around that."""
    walk = SoundForm.least_over_ball

    def around(self: Any, box: Any, middle: Any, *rest: Any, samples: bool) -> Any:
        return walk(self, box, box.center, *rest, samples=samples)

    monkeypatch.setattr(SoundForm, "least_over_ball", around)


def test_planted_faults_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model, center = affine()
    with monkeypatch.context() as patch:
        _smaller_norm(patch)
        assert missed(model, bg.L2Ball(center, 0.3), "ibp", 200) > 0
    assert missed(model, bg.L2Ball(center, 0.3), "ibp", 200) == 0
    # The clip moves the centre of the box, and the worst point stays in the region.
    row = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        row.weight.copy_(torch.tensor([[1.0, -3.0]]))
    ball = bg.L2Ball(torch.tensor([[0.0, 0.5]]), 0.4, clip=(-0.05, 1.0))
    worst = -0.05 - 3.0 * (0.5 + 0.39)
    with monkeypatch.context() as patch:
        _no_shift(patch)
        assert (
            float(bg.compile(row, ball, method="crown", rounding="sound")(ball).lower.detach())
            > worst
        )
    assert (
        float(bg.compile(row, ball, method="crown", rounding="sound")(ball).lower.detach()) < worst
    )
