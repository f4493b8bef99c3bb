"""Functions of one number: every spelling, critical points, domains, huge and tiny boxes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import boundgraph as bg
from boundgraph import ops
from boundgraph.domains.interval import Interval
from boundgraph.errors import UnsupportedError
from boundgraph.frontends import capture
from boundgraph.testing import check_model

ANY, POSITIVE, UNIT, ABOVE_1, INSIDE = (-2.5, 2.5), (0.2, 3.0), (-0.9, 0.9), (1.2, 4.0), (0.1, 0.9)
MASK = torch.tensor([True, False, True, False])
Function = Callable[[Tensor], Tensor]

SPELLINGS: dict[str, tuple[Function, tuple[float, float]]] = {
    "abs": (torch.abs, ANY),
    "abs builtin": (lambda x: abs(x), ANY),
    "acos": (torch.acos, UNIT),
    "arccos": (torch.arccos, UNIT),
    "acosh": (lambda x: x.acosh(), ABOVE_1),
    "asin": (torch.asin, UNIT),
    "asinh": (torch.asinh, ANY),
    "atan": (lambda x: x.arctan(), ANY),
    "atanh": (torch.atanh, UNIT),
    "ceil": (torch.ceil, ANY),
    "celu": (lambda x: F.celu(x, 1.5), ANY),
    "clamp": (lambda x: x.clamp(-0.5, 0.7), ANY),
    "clamp below": (lambda x: torch.clamp(x, min=0.1), ANY),
    "clamp to tensors": (lambda x: x.clamp(torch.tensor([-0.5]), torch.tensor(0.7)), ANY),
    "clip in place": (lambda x: (x * 1.0).clip_(max=0.3), ANY),
    "cos": (torch.cos, ANY),
    "cosh": (torch.cosh, ANY),
    "deg2rad": (torch.deg2rad, ANY),
    "digamma": (torch.digamma, POSITIVE),
    "elu": (lambda x: F.elu(x, 0.7), ANY),
    "elu in place": (lambda x: F.elu(x * 1.0, 1.3, inplace=True), ANY),
    "erf": (torch.erf, ANY),
    "erf special": (torch.special.erf, ANY),
    "erfc": (torch.erfc, ANY),
    "erfinv": (torch.erfinv, UNIT),
    "exp": (torch.exp, ANY),
    "exp2": (torch.exp2, ANY),
    "exp in place": (lambda x: (x * 1.0).exp_(), ANY),
    "expit": (torch.special.expit, ANY),
    "expm1": (torch.expm1, ANY),
    "floor": (torch.floor, ANY),
    "frac": (torch.frac, ANY),
    "gelu": (F.gelu, ANY),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), ANY),
    "glu": (F.glu, ANY),
    "hardshrink": (lambda x: F.hardshrink(x, 0.4), ANY),
    "hardsigmoid": (lambda x: F.hardsigmoid(2.0 * x), ANY),
    "hardswish": (lambda x: F.hardswish(2.0 * x), ANY),
    "hardtanh": (lambda x: F.hardtanh(x, -0.7, 1.1), ANY),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.1), ANY),
    "lgamma": (torch.lgamma, POSITIVE),
    "log": (torch.log, POSITIVE),
    "log10": (torch.log10, POSITIVE),
    "log1p": (torch.log1p, POSITIVE),
    "log2": (lambda x: x.log2(), POSITIVE),
    "log_ndtr": (torch.special.log_ndtr, ANY),
    "logaddexp": (lambda x: torch.logaddexp(x, x.flip(1)), ANY),
    "logit": (torch.logit, INSIDE),
    "logit with eps": (lambda x: torch.logit(x, 0.2), ANY),
    "logsigmoid": (F.logsigmoid, ANY),
    "maximum": (lambda x: torch.maximum(x, x.flip(1)), ANY),
    "maximum of a constant": (lambda x: torch.maximum(x, torch.tensor(0.2, dtype=x.dtype)), ANY),
    "minimum": (lambda x: torch.minimum(x, -x), ANY),
    "mish": (F.mish, ANY),
    "ndtr": (torch.special.ndtr, ANY),
    "positive": (lambda x: +x + torch.positive(x), ANY),
    "pow 3": (lambda x: x**3, ANY),
    "pow 4": (lambda x: x**4, ANY),
    "pow -2": (lambda x: x.pow(-2), POSITIVE),
    "pow fractional": (lambda x: x**1.5, POSITIVE),
    "pow of a number": (lambda x: 2.0**x, ANY),
    "pow of tensors": (lambda x: x ** (x + 1.0), POSITIVE),
    "prelu": (lambda x: F.prelu(x, torch.tensor([0.1, 1.5, -0.3, 0.0], dtype=x.dtype)), ANY),
    "quotient": (lambda x: x.flip(1) / (x * x + 1.0), ANY),
    "rad2deg": (torch.rad2deg, ANY),
    "reciprocal": (torch.reciprocal, POSITIVE),
    "relu6": (lambda x: F.relu6(4.0 * x), ANY),
    "round": (torch.round, ANY),
    "round to decimals": (lambda x: torch.round(x, decimals=1), ANY),
    "rrelu": (lambda x: F.rrelu(x, training=False), ANY),
    "rsqrt": (torch.rsqrt, POSITIVE),
    "selu": (F.selu, ANY),
    "sigmoid": (torch.sigmoid, ANY),
    "sign": (torch.sign, ANY),
    "silu": (F.silu, ANY),
    "sin": (torch.sin, ANY),
    "sinc": (torch.sinc, ANY),
    "sinh": (torch.sinh, ANY),
    "softplus": (lambda x: F.softplus(x, 2.0), ANY),
    "softshrink": (lambda x: F.softshrink(x, 0.4), ANY),
    "softsign": (F.softsign, ANY),
    "sqrt": (torch.sqrt, POSITIVE),
    "sqrt in place": (lambda x: (x * 1.0).sqrt_(), POSITIVE),
    "square": (torch.square, ANY),
    "tan": (torch.tan, UNIT),
    "tanh": (torch.tanh, ANY),
    "tanhshrink": (F.tanhshrink, ANY),
    "threshold": (lambda x: F.threshold(x, 0.1, -0.4), ANY),
    "trunc": (torch.trunc, ANY),
    "where": (
        lambda x: torch.where(torch.tensor([True, False, True, False]), x, x.new_full((4,), 2.0)),
        ANY,
    ),
    "masked_fill": (lambda x: x.masked_fill(MASK, -1.0), ANY),
}


class Apply(nn.Module):
    def __init__(self, fn: Function) -> None:
        super().__init__()
        self.fn = fn
        self.mix = nn.Linear(4, 4)
        with torch.no_grad():
            weight = torch.tensor(
                [[1.0, 0, 0, 0], [0, 0.9, 0.1, 0], [0, 0, 1.0, 0], [0, 0.2, 0, 0.8]]
            )
            self.mix.weight.copy_(weight)
            self.mix.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.mix(x))


def boxes(low: float, high: float, dtype: torch.dtype) -> bg.Box:
    """Wide, narrow, thin and point boxes, in rows."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.rand(2, 6, 4, generator=generator, dtype=torch.float64) * (high - low) + low
    share = torch.tensor([1.0, 1.0, 0.3, 0.05, 1e-6, 0.0], dtype=torch.float64)[:, None]
    first = ends[0]
    second = first + (ends[1] - first) * share
    return bg.Box(torch.minimum(first, second).to(dtype), torch.maximum(first, second).to(dtype))


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_every_spelling_is_enclosed_by_every_method(name: str, dtype: torch.dtype) -> None:
    fn, domain = SPELLINGS[name]
    model = Apply(fn).to(dtype)
    methods = ("ibp", "mix", "crown") if dtype == torch.float64 else ("symbolic", "crown")
    check_model(model, boxes(*domain, dtype), methods=methods, points=12)


class Many(nn.Module):
    """Every function of the table that takes any number, in one model."""

    def forward(self, x: Tensor) -> Tensor:
        simple = [fn for fn, domain in SPELLINGS.values() if domain is ANY]
        return torch.stack([fn(x).sum(1) for fn in simple], 1)


def test_export_spells_them_too() -> None:
    """Both frontends give ops with rules: nothing is left as a call."""
    example = torch.randn(2, 4)
    for frontend in ("torch_fx", "torch_export"):
        program = capture(Many(), (example,), frontend=frontend).program
        left = [node.attrs["target"] for node in program.nodes if node.op == "call"]
        assert not left, (frontend, left)


def test_what_cannot_be_bounded_says_so() -> None:
    box = bg.Box(torch.zeros(1, 4), torch.ones(1, 4))
    for fn, message in (
        (torch.nan_to_num, "nan_to_num"),
        (lambda x: F.rrelu(x, training=True), "random"),
        (lambda x: (-2.0) ** x, "not positive"),
    ):
        with pytest.raises(UnsupportedError, match=message):
            bg.bound(Apply(fn))(box)


def test_the_steepest_slope_of_mish_is_found():
    """mish′ peaks at 1.0885 near 1.4906; a rule that looked elsewhere gave 1.0872."""
    x = torch.tensor([1.45, 1.55], dtype=torch.float64)
    grid = torch.linspace(1.45, 1.55, 2001, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(torch.nn.functional.mish(grid).sum(), grid)
    lines = ops.get("mish").lines(Interval(x[:1], x[1:]))
    # The tightest line of the steepest slope touches the curve; none may cut it.
    value = torch.nn.functional.mish(grid.detach())
    assert float(slope.max()) > 1.0884
    upper = lines.upper_slope * grid.detach() + lines.upper_offset
    lower = lines.lower_slope * grid.detach() + lines.lower_offset
    assert bool((value <= upper + 1e-12).all() and (value >= lower - 1e-12).all())
