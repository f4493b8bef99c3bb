"""Normalisation and functions with a domain, rounded soundly, against exact values."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exact_bounds import misses
from torch import Tensor, nn

import boundgraph as bg
from boundgraph import ops
from boundgraph.domains.interval import Interval
from boundgraph.domains.rounding import Outward, Precision
from boundgraph.ops import standardize
from boundgraph.ops._sound import interval_rule
from boundgraph.testing._exact import _big_power, _by_mpmath, _scale_to_unit, fractions, outside
from boundgraph.testing._rounding import unit_roundoff

METHODS = ("ibp", "symbolic", "mix", "crown-ibp", "crown", "alpha-crown")


class Between(nn.Module):
    """A function between two layers, of which the first makes large values that nearly cancel."""

    def __init__(self, function: Callable[[Tensor], Tensor], scale: float) -> None:
        super().__init__()
        self.function = function
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        with torch.no_grad():
            self.first.weight.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def _grouped(x: Tensor) -> Tensor:
    return F.group_norm(x.reshape(-1, 2, 3), 2).flatten(1)


def _attention(x: Tensor) -> Tensor:
    rows = x.reshape(-1, 2, 3)
    scores = torch.softmax(rows @ rows.mT, -1)
    return (scores @ rows).flatten(1)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer norm": lambda x: F.layer_norm(x, (6,), eps=1e-5),
    "layer norm, tiny eps": lambda x: F.layer_norm(x, (6,), eps=1e-12),
    "rms norm": lambda x: F.rms_norm(x, (6,)),
    "group norm": _grouped,
    "instance norm": lambda x: F.instance_norm(x.reshape(-1, 2, 3)).flatten(1),
    "normalize": lambda x: F.normalize(x),
    "norm": lambda x: x / (x.norm(dim=1, keepdim=True) + 0.5),
    "1-norm": lambda x: x * torch.linalg.vector_norm(x, 1, dim=1, keepdim=True),
    "3-norm": lambda x: x + torch.linalg.vector_norm(x, 3, dim=1, keepdim=True),
    "max norm": lambda x: x - torch.linalg.vector_norm(x, torch.inf, dim=1, keepdim=True),
    "deviation": lambda x: x + x.std(1, keepdim=True),
    "attention": _attention,
    "softmax": lambda x: torch.softmax(x, 1),
    "log of a sum of exponentials": lambda x: x - torch.logsumexp(x, 1, keepdim=True),
    "log softmax": lambda x: torch.log_softmax(x, 1),
    "log": lambda x: torch.log(x.abs() + 0.5),
    "sqrt": lambda x: torch.sqrt(x.square()),
    "rsqrt": lambda x: torch.rsqrt(x.square() + 1e-5),
    "pow": lambda x: (x.abs() + 0.1) ** 1.7,
    "cube": lambda x: x**3,
    "quotient": lambda x: x / (x.square() + 1.0),
    "log1p": lambda x: torch.log1p(x.abs()),
    "logit": lambda x: torch.logit(torch.sigmoid(x) * 0.5 + 0.25),
    "atanh": lambda x: torch.atanh(torch.tanh(x) * 0.5),
    "asin": lambda x: torch.asin(torch.sin(x) * 0.75) + torch.acos(torch.cos(x) * 0.75),
}


def _region(rng: random.Random, dtype: torch.dtype) -> bg.Box:
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    center = torch.randn((1, 4), generator=generator, dtype=torch.float64).to(dtype)
    eps = rng.choice((0.0, 0.0, 1e-6, 1 / 255, 0.3))
    return bg.Box(center - eps, center + eps)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_contain_exact_values(name: str) -> None:
    rng = random.Random(name)
    for scale, dtype in ((1.0, torch.float32), (100.0, torch.float32), (1e-6, torch.float64)):
        if name in ("cube", "asin") and scale == 100.0:
            continue
        torch.manual_seed(rng.getrandbits(32))
        model = Between(FUNCTIONS[name], scale).to(dtype).eval()
        box = _region(rng, dtype)
        methods = METHODS if name in ("layer norm", "log") else ("mix", "alpha-crown")
        methods = methods if scale == 1.0 else ("ibp",)
        compared, missed = misses(model, [box], rng, methods=methods, points=3, rounding="sound")
        assert compared
        assert not any(missed.values()), (scale, missed)


def test_rounding_to_nearest_misses_them() -> None:
    wrong = set()
    for name, function in FUNCTIONS.items():
        torch.manual_seed(1)
        model = Between(function, 1.0).eval()
        point = torch.randn(1, 4)
        box = bg.Box(point, point)
        _, missed = misses(model, [box], random.Random(0), methods=("ibp",), points=1)
        wrong |= {name} if missed["ibp"] else set()
    assert len(wrong) > len(FUNCTIONS) // 2, wrong


def test_a_sound_layer_norm_is_little_wider() -> None:
    torch.manual_seed(0)
    model = Between(FUNCTIONS["layer norm"], 1.0).eval()
    region = bg.LinfBall(torch.randn(3, 4), 1 / 255)
    plain, sound = (
        bg.compile(model, region, rounding=rounding)(region) for rounding in ("nearest", "sound")
    )
    assert float(sound.width.sum().detach()) < 1.002 * float(plain.width.sum().detach())


def _scaled(low: Tensor, high: Tensor, **attrs: Any) -> Outward:
    spec = ops.get("scale_to_unit")
    assert spec is not None
    rule = interval_rule(spec)
    assert rule is not None
    count = low.shape[1]
    options = {"dims": (1,), "count": count, "eps": 0.0, "floor": 0.0, "centered": False}
    terms = count + 16
    return rule(Interval(low, high), terms=terms, precision="f32", **(options | attrs))  # type: ignore[no-any-return]


def test_normalisation_at_the_ends_of_the_number_range() -> None:
    """Overflow and underflow on the way: signs, limits and nothing in between are lost."""
    rng = random.Random(0)
    for _ in range(300):
        size = [10.0 ** rng.uniform(-44, 38) for _ in range(3)]
        ends = [
            sorted(rng.choice((-1.0, 1.0)) * s * rng.choice((0.0, 1.0, 0.5)) for _ in range(2))
            for s in size
        ]
        low, high = (torch.tensor([[e[i] for e in ends]], dtype=torch.float32) for i in (0, 1))
        attrs = rng.choice(({"eps": 1e-5}, {"floor": 1e-12}, {"eps": 1e-12, "floor": 1e-3}))
        found = _scaled(low, high, **attrs)
        for _ in range(4):
            point = fractions(low) * 0
            for i in range(3):
                a, b = fractions(low)[0, i], fractions(high)[0, i]
                point[0, i] = a + (b - a) * Fraction(rng.choice((0, 1, 1, rng.randint(0, 9))), 9)
                point[0, i] = min(max(point[0, i], a), b)
            options = {"eps": 0.0, "floor": 0.0} | attrs
            value = _scale_to_unit(point, dims=(1,), count=3, centered=False, **options)
            assert not outside(value, found.lower, found.upper), (low, high, attrs)


def test_normalisation_of_what_can_be_zero_has_no_bound_without_eps() -> None:
    found = _scaled(torch.tensor([[-1.0, -2.0]]), torch.tensor([[1.0, 2.0]]))
    assert bool((found.lower == -torch.inf).all() & (found.upper == torch.inf).all())


def _missed(rng: random.Random) -> int:
    found = 0
    for _ in range(40):
        point = torch.tensor([[rng.gauss(0, 1) for _ in range(5)]], dtype=torch.float32)
        bounds = _scaled(point, point, eps=1e-5)
        options = {"dims": (1,), "count": 5, "eps": 1e-5, "floor": 0.0, "centered": False}
        found += len(
            outside(_scale_to_unit(fractions(point), **options), bounds.lower, bounds.upper)
        )
    return found


def test_a_forgotten_rounding_of_normalisation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _missed(random.Random(0)) == 0
    monkeypatch.setattr(standardize, "below", lambda value, *_: value)
    monkeypatch.setattr(standardize, "above", lambda value, *_: value)
    monkeypatch.setattr(standardize, "grown", lambda value, _: value)
    monkeypatch.setattr(Precision, "gamma", lambda self, terms: 0.0)
    assert _missed(random.Random(0))


def _power_of_ten(low: float, high: float) -> Callable[[random.Random], float]:
    return lambda r: 10 ** r.uniform(low, high)


_SMALL, _ANY = _power_of_ten(-7, 0), _power_of_ten(-37, 37)
# Points near zeros and poles of a function and near the ends of its domain.
_EDGES: dict[str, Callable[[random.Random], float]] = {
    "log": lambda r: r.choice([1 + r.gauss(0, 1) * 10 ** r.randint(-9, -2), _ANY(r)]),
    "log1p": lambda r: r.choice([r.gauss(0, 1) * 10 ** r.randint(-9, -2), _SMALL(r) - 1]),
    "sqrt": _ANY,
    "asin": lambda r: r.choice([r.uniform(-1, 1), 10 ** r.uniform(-20, 0), 1 - _SMALL(r)]),
    "acosh": lambda r: r.choice([1 + _SMALL(r), 10 ** r.uniform(0, 37)]),
    "logit": lambda r: r.choice([r.random(), 1 - _SMALL(r), 0.5 + r.gauss(0, 1) * 1e-6]),
}
_EDGES |= {"log2": _EDGES["log"], "log10": _EDGES["log"], "rsqrt": _EDGES["sqrt"]}
_EDGES |= dict.fromkeys(("acos", "atanh", "erfinv"), _EDGES["asin"])
_EDGES |= {"pow": _EDGES["sqrt"]}


def test_every_function_with_a_domain_is_compared() -> None:
    assert {spec.name for spec in ops.all_ops() if spec.partial} == set(_EDGES)


@pytest.mark.parametrize("name", _EDGES)
def test_declared_ulps_hold_at_zeros_and_edges(name: str) -> None:
    """The library's functions err by no more than declared, compared with 300 bits."""
    spec = ops.get(name)
    assert spec is not None
    for dtype in (torch.float32, torch.float64):
        rng, u = random.Random(name), Fraction(unit_roundoff(dtype))
        points = torch.tensor([_EDGES[name](rng) for _ in range(200)], dtype=dtype)
        exponent = rng.choice((1.5, 0.3, -0.7, 3.0, -2.0, 7.0))
        attrs = {"exponent": exponent} if name == "pow" else {}
        fn = _big_power(exponent) if name == "pow" else _by_mpmath(name)
        values = spec.concrete(points, **attrs)
        least = torch.finfo(dtype).tiny
        terms = 0 if spec.rounding.terms is None else spec.rounding.terms(points)
        for x, y in zip(points.tolist(), values.tolist(), strict=True):
            if not least < abs(y) < torch.inf or not least < abs(x):
                continue
            exact = fn(Fraction(x))
            allowed = u * (Fraction(spec.rounding.ulps) * abs(exact) + 2 * terms)
            assert abs(Fraction(y) - exact) <= allowed, (x, y)
