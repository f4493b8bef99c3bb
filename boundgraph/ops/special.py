"""Error functions, the normal distribution, gamma functions, entropy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.ops._kinds import elementwise
from boundgraph.ops._spec import Rounding
from boundgraph.ops._spelling import spell, uniform
from boundgraph.ops.exponential import on_domain
from boundgraph.relaxations.curves import SinglePeak
from boundgraph.relaxations.fallback import Fallback
from boundgraph.relaxations.turns import between, turn_of

TWO_OVER_ROOT_PI = 2.0 / math.sqrt(math.pi)
_ROOT_2_PI = math.sqrt(2.0 * math.pi)


def _bell(x: Tensor) -> Tensor:
    return TWO_OVER_ROOT_PI * (-x.square()).exp()


def _bell_inverse(s: Tensor) -> Tensor:
    return (-(s.abs() / TWO_OVER_ROOT_PI).log()).clamp(min=0.0).sqrt()


elementwise(
    "erf",
    torch.erf,
    curve=SinglePeak(_bell, _bell_inverse),
    rounding=Rounding(ulps=8),
    sample=uniform(),
    summary="error function",
)
elementwise(
    "erfc",
    torch.erfc,
    interval=between(torch.erfc),
    curve=SinglePeak(lambda x: -_bell(x), _bell_inverse, valley=True),
    rounding=Rounding(ulps=16),
    sample=uniform(),
    summary="1 − erf(x)",
)
elementwise(
    "erfinv",
    torch.erfinv,
    interval=on_domain(torch.erfinv, -1.0, 1.0),
    curve=SinglePeak(
        lambda y: _bell(torch.erfinv(y)).reciprocal(),
        lambda s: torch.erf((s * TWO_OVER_ROOT_PI).log().clamp(min=0.0).sqrt()),
        valley=True,
    ),
    rounding=Rounding(ulps=16),
    partial=True,
    sample=uniform(-0.99, 0.99),
    summary="inverse error function; no bound where x leaves [−1, 1]",
)
elementwise(
    "ndtr",
    torch.special.ndtr,
    curve=SinglePeak(
        lambda x: (-0.5 * x.square()).exp() / _ROOT_2_PI,
        lambda s: (-2.0 * (s * _ROOT_2_PI).log()).clamp(min=0.0).sqrt(),
    ),
    magnitude=torch.ones_like,
    rounding=Rounding(ulps=16, terms=lambda *_, **__: 8),
    sample=uniform(),
    summary="cumulative normal distribution",
)
elementwise(
    "log_ndtr",
    torch.special.log_ndtr,
    magnitude=torch.ones_like,
    rounding=Rounding(ulps=16, terms=lambda *_, **__: 8),
    sample=uniform(),
    summary="logarithm of the cumulative normal distribution",
)


def _trigamma(x: Tensor) -> Tensor:
    return torch.polygamma(1, x)


_LEAST_GAMMA = turn_of(torch.lgamma, 1.0, 2.0, -1.0)


def _lgamma_interval(x: Interval) -> Interval:
    """Falls to a minimum between 1 and 2, then rises; no bound where x can be negative."""
    found = between(torch.lgamma, (_LEAST_GAMMA,))(x)
    inside = x.lower >= 0.0
    return Interval(
        torch.where(inside, found.lower, -torch.inf), torch.where(inside, found.upper, torch.inf)
    )


elementwise(
    "lgamma",
    torch.lgamma,
    interval=_lgamma_interval,
    curve=Fallback(on_domain(torch.digamma, 0.0, beyond=math.inf)),
    magnitude=lambda x: x + 1.0,
    rounding=Rounding(ulps=16, terms=lambda *_, **__: 8),
    sample=uniform(0.1, 6.0),
    summary="log Γ(x); no bound where x can be negative",
)
elementwise(
    "digamma",
    torch.digamma,
    interval=on_domain(torch.digamma, 0.0, beyond=math.inf),
    curve=Fallback(on_domain(_trigamma, 0.0, falling=True, beyond=math.inf)),
    magnitude=torch.ones_like,
    rounding=Rounding(ulps=16, terms=lambda *_, **__: 32),
    sample=uniform(0.1, 6.0),
    summary="logarithmic derivative of Γ; no bound where x can be negative",
)
spell("erf")
spell("erfc")
spell("erfinv")
spell("ndtr")
spell("log_ndtr")
spell("lgamma", "gammaln")
spell("digamma", "psi")
