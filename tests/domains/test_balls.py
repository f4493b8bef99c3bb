"""Regions that are p-balls: dual norms, soundness, exactness where it can be had."""

import itertools
import math

import pytest
import torch
from torch import nn

import boundgraph as bg
from boundgraph.domains.balls import ball_size, dual, inside_ball, safe_norm, steepest
from boundgraph.errors import ConfigError, RegionError
from boundgraph.testing import check_model

NORMS = (1.0, 1.5, 2.0, 4.0)
METHODS = ("ibp", "symbolic", "mix", "crown-ibp", "crown")


def mlp(seed, *sizes):
    torch.manual_seed(seed)
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", METHODS)
def test_a_linear_model_is_bounded_exactly(norm, method):
    model = mlp(0, 5, 3)
    x, eps = torch.rand(4, 5, dtype=torch.float64), torch.tensor([0.0, 0.1, 0.5, 2.0]).double()
    bounds = bg.bound(model, method=method)(bg.LpBall(x, eps, norm))
    reach = eps[:, None] * torch.linalg.vector_norm(model[0].weight, dual(norm), dim=1)
    torch.testing.assert_close(bounds.upper, model(x) + reach, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bounds.lower, model(x) - reach, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_bounds_hold_on_sampled_points(norm):
    torch.manual_seed(1)
    conv = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    ).double()
    for model, x in ((mlp(2, 4, 8, 6, 3), torch.rand(2, 4)), (conv, torch.rand(2, 1, 4, 4))):
        for clip in (None, (0.0, 1.0)):
            check_model(model, bg.LpBall(x.double(), 0.4, norm, clip), methods=METHODS, points=24)


@pytest.mark.parametrize("norm", [1.0, 2.0])
def test_crown_encloses_the_exact_range(norm):
    """On each activation pattern the network is linear: a dense search finds the range."""
    model = mlp(3, 2, 5, 1)
    x, eps = torch.tensor([[0.3, -0.2]]).double(), 0.5
    angles = torch.linspace(0, 2 * math.pi, 4001, dtype=torch.float64)
    ring = torch.stack([angles.cos(), angles.sin()], 1)
    ring = ring / ball_size(ring, norm)[:, None]
    shells = torch.linspace(0, 1, 60, dtype=torch.float64)[:, None, None] * ring
    with torch.no_grad():
        values = model(x + eps * shells.reshape(-1, 2))
    widths = {}
    for method in METHODS:
        with torch.no_grad():
            bounds = bg.bound(model, method=method)(bg.LpBall(x, eps, norm))
        assert float(bounds.lower) <= float(values.min()) + 1e-12
        assert float(bounds.upper) >= float(values.max()) - 1e-12
        widths[method] = float(bounds.width)
    with torch.no_grad():
        box = bg.bound(model, method="crown")(bg.LinfBall(x, eps))
    assert widths["crown"] < float(box.width)
    assert widths["mix"] <= widths["ibp"] + 1e-12


def test_samples_have_balls_of_their_own():
    """Neither a batch nor a model that is tied to its batch size shares one ball."""
    model = mlp(4, 3, 6, 2)
    x = torch.rand(3, 3).double()
    eps = torch.tensor([0.1, 0.0, 0.7]).double()
    for method in METHODS:
        together = bg.bound(model, method=method)(bg.L2Ball(x, eps))
        fixed = bg.bound(model, method=method, dynamic_batch=False)(bg.L2Ball(x, eps))
        for i in range(3):
            alone = bg.bound(model, method=method)(bg.L2Ball(x[i : i + 1], float(eps[i])))
            torch.testing.assert_close(together.lower[i : i + 1], alone.lower)
            # Without a batch dimension rows may be looser, never tighter.
            assert bool((fixed.lower[i : i + 1] <= alone.lower + 1e-9).all())


def test_tiny_weights_do_not_underflow():
    weight = torch.full((1, 4), 1e-30)
    for norm in NORMS:
        exact = torch.linalg.vector_norm(weight.double(), dual(norm), dim=1)
        found = safe_norm(weight, dual(norm), 1).double()
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=0.0)
    assert safe_norm(torch.full((1, 3), 0.1), 101.0, 1) >= 0.1


@pytest.mark.parametrize("norm", NORMS)
def test_points_are_pulled_inside(norm):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(5, 7, generator=generator)
    region = bg.LpBall(x, torch.tensor([0.0, 1e-3, 0.1, 1.0, 5.0]), norm, (0.0, 1.0)).interval()
    points = inside_ball(x + torch.randn(5, 7, generator=generator), region)
    size = ball_size(points.double() - x.double(), norm)
    assert bool((size <= region.reach.double()).all())
    assert bool(((points >= region.lower) & (points <= region.upper)).all())
    way = steepest(torch.randn(5, 7, generator=generator), norm)
    torch.testing.assert_close(ball_size(way, norm), torch.ones(5))


def test_programs_keep_their_kind_of_region(tmp_path):
    model = mlp(5, 3, 6, 2)
    x = torch.rand(2, 3).double()
    program = bg.compile(model, bg.L1Ball(x, 0.1), method="crown", spec=bg.Margin(2))
    labels = torch.tensor([0, 1])
    program.save(tmp_path / "net.bgp")
    again = bg.load(tmp_path / "net.bgp")
    expected = program(bg.L1Ball(x, 0.3), labels=labels)
    torch.testing.assert_close(again(bg.L1Ball(x, 0.3), labels=labels).lower, expected.lower)
    torch.testing.assert_close(
        program.interpret(bg.L1Ball(x, 0.3), labels=labels).lower, expected.lower
    )
    for wrong in (bg.LinfBall(x, 0.1), bg.L2Ball(x, 0.1), bg.Box(x, x)):
        with pytest.raises(RegionError, match="compiled for a ball of the 1-norm"):
            program(wrong, labels=labels)


def test_attack_evaluation_and_verification_agree_on_the_ball():
    model = mlp(6, 4, 16, 3).eval()
    x = torch.rand(24, 4).double()
    y = model(x).argmax(1)
    for norm in (1.0, 2.0):
        result = bg.evaluate(model, (x, y), eps=0.15, norm=norm, method=("ibp", "crown"), clip=None)
        assert result.certified <= result.attacked <= result.clean == 1.0
        verdict = bg.verify(model, bg.LpBall(x[:1], 3.0, norm), bg.Margin(3), labels=y[:1])
        assert isinstance(verdict, bg.Refuted)
        (point,) = verdict.counterexample
        assert float(ball_size(point - x[:1], norm)) <= 3.0
        assert bg.verify(model, bg.LpBall(x[:1], 1e-4, norm), bg.Margin(3), labels=y[:1])
    with pytest.raises(ConfigError, match="one eps for each sample"):
        bg.attack.pgd(model, x, y, torch.rand(24, 4), norm=2.0, clip=None)


def test_bad_balls_are_refused():
    x = torch.zeros(2, 3)
    for bad in (
        lambda: bg.L2Ball(x, -0.1),
        lambda: bg.LpBall(x, 0.1, 0.5),
        lambda: bg.LpBall(x, 0.1, math.inf),
        lambda: bg.L2Ball(x, torch.rand(2, 3)),
        lambda: bg.L2Ball(torch.tensor(0.0), 0.1),
        lambda: bg.L1Ball(x, 0.1, clip=(0.5, 1.0)),
    ):
        with pytest.raises(RegionError):
            bad()


@pytest.mark.parametrize("norm", NORMS)
def test_mix_is_never_looser_than_ibp(norm):
    """Also where the model is tied to its batch, and symbols range over the box."""
    torch.manual_seed(7)
    for model in (mlp(8, 4, 6, 3), nn.Sequential(nn.Linear(4, 4)).double()):
        x = torch.randn(3, 4).double()
        region = bg.LpBall(x, torch.tensor([0.1, 0.9, 5.0]).double(), norm, (-4.0, 4.0))
        for dynamic in (None, False):
            options = {"dynamic_batch": dynamic}
            ibp = bg.bound(model, method="ibp", **options)(region)
            mix = bg.bound(model, method="mix", **options)(region)
            room = 1e-9 * (1 + ibp.width)
            assert bool((mix.lower >= ibp.lower - room).all())
            assert bool((mix.upper <= ibp.upper + room).all())
