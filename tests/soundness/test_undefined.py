"""A network that computes NaN somewhere in the region is never bounded as if it did not."""

import pytest
import torch
from torch import nn

import boundgraph as bg
from boundgraph import ops
from boundgraph.errors import BoundGraphError, NonFiniteError

PARTIAL = {
    "log": (torch.log, -2.0),
    "log2": (torch.log2, -2.0),
    "log1p": (torch.log1p, -3.0),
    "sqrt": (torch.sqrt, -1.0),
    "rsqrt": (torch.rsqrt, -1.0),
    "pow": (lambda x: torch.pow(x, 0.5), -1.0),
    "asin": (torch.asin, 1.5),
    "acos": (torch.acos, -1.5),
    "acosh": (torch.acosh, 0.5),
    "atanh": (torch.atanh, 1.5),
    "logit": (torch.logit, 1.5),
    "erfinv": (torch.erfinv, 1.5),
}


class Hidden(nn.Module):
    """A function whose NaN a later op would hide from finite bounds."""

    def __init__(self, function, hide):
        super().__init__()
        self.function, self.hide = function, hide

    def forward(self, x):
        return self.hide(self.function(x)) + 1.0


HIDERS = (lambda y: torch.clamp(y, 0.0, 1.0), torch.sigmoid, torch.exp, torch.atan)


@pytest.mark.parametrize("name", PARTIAL)
@pytest.mark.parametrize("width", [0.1, 5.0])
def test_no_method_bounds_it(name, width):
    function, at = PARTIAL[name]
    assert ops.get(name).partial
    x = torch.full((1, 2), at, dtype=torch.float64)
    for hide in HIDERS:
        model = Hidden(function, hide).eval()
        region = bg.LinfBall(x, width)
        for method in ("ibp", "symbolic", "mix", "crown-ibp", "crown"):
            with pytest.raises(NonFiniteError):
                bg.bound(model, method=method)(region)
        spec = bg.LinearSpec(torch.ones(1, 2, dtype=torch.float64))
        assert not bg.verify(model, region, spec)


@pytest.mark.parametrize("name", PARTIAL)
def test_no_method_bounds_it_with_sound_rounding(name):
    function, at = PARTIAL[name]
    for index, method in enumerate(("ibp", "mix", "crown-ibp", "alpha-crown")):
        model = Hidden(function, HIDERS[index]).eval()
        region = bg.LinfBall(torch.full((1, 2), at), (0.1, 5.0)[index % 2])
        with pytest.raises(NonFiniteError, match=r"may be undefined at .*test_undefined.py:"):
            bg.compile(model, region, method=method, rounding="sound")(region)
    assert not bg.verify(model, region, bg.LinearSpec(torch.ones(1, 2)), rounding="sound")


def test_with_sound_rounding_each_sample_answers_for_itself():
    model = Hidden(torch.log, torch.sigmoid).eval()
    x = torch.tensor([[1.0, 2.0], [1.0, -2.0]], dtype=torch.float64)
    region = bg.LinfBall(x, 0.1)
    for method in ("ibp", "crown"):
        program = bg.compile(model, region, method=method, rounding="sound")
        bounds = program.run(program.check(region))
        assert bool(bounds.lower[0].isfinite().all() & bounds.upper[0].isfinite().all())
        assert bool(bounds.lower[1].isnan().all() & bounds.upper[1].isnan().all())
        first = bg.LinfBall(x[:1], 0.1)
        assert torch.equal(program(first).lower, bounds.lower[:1])
        # Also where the program is compiled or saved.
        assert program.interpret(first).lower.equal(bounds.lower[:1])


def test_a_power_of_two_bounded_tensors_is_refused_below_zero():
    class Power(nn.Module):
        def forward(self, x, y):
            return torch.pow(x, y)

    x, y = torch.full((1, 2), -2.0), torch.full((1, 2), 3.0)
    for method in ("ibp", "crown"):
        with pytest.raises(BoundGraphError):
            bg.bound(Power(), method=method)(bg.LinfBall(x, 0.1), bg.LinfBall(y, 0.1))
