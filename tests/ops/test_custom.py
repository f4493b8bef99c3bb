"""Functions and modules of the user's: rules, leaves, frozen parts, and what is refused."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import boundgraph as bg
from boundgraph import errors
from boundgraph.errors import CheckpointError, ConfigError, SoundnessError, UnsupportedError
from boundgraph.ops import all_ops, get
from boundgraph.ops._spec import lowered_targets
from boundgraph.testing import OpCase, check_model, check_op

METHODS = ("ibp", "symbolic", "mix", "crown-ibp", "crown")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = names()
    yield
    assert names() == before


def names():
    # The operator that export keeps is made when first needed, and stays.
    targets = {target for target in lowered_targets() if "user_call" not in str(target)}
    return [spec.name for spec in all_ops()], targets


def bump(x, height=1.0):
    return height / (1.0 + x * x)


def bump_interval(x, height=1.0):
    far = torch.maximum(x.lower.abs(), x.upper.abs())
    near = torch.minimum(x.lower.abs(), x.upper.abs())
    near = torch.where((x.lower <= 0) & (x.upper >= 0), 0.0, near)
    return bg.Interval(height / (1.0 + far * far), height / (1.0 + near * near))


class Net(nn.Module):
    def __init__(self, middle):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Linear(3, 4), middle, nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


class Calls(nn.Module):
    def __init__(self, function, **options):
        super().__init__()
        self.function, self.options = function, options

    def forward(self, x):
        return self.function(x, **self.options)


class Attend(nn.Module):
    """Control flow on shapes, and parameters: nothing that symbolic tracing can follow."""

    def __init__(self, size):
        super().__init__()
        self.inner = nn.Linear(size, size)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x):
        for _ in range(x.shape[-1] - 2):
            x = torch.tanh(self.inner(x)) * self.scale
        return x


def attend_interval(module, x):
    reach = torch.ones_like(module.inner(x.lower)) * module.scale.abs()
    return bg.Interval(-reach, reach)


def region(batch=2, eps=0.2):
    return bg.LinfBall(torch.linspace(-1.0, 1.0, 3 * batch).reshape(batch, 3), eps=eps)


@pytest.mark.parametrize("frontend", ["torch_fx", "torch_export"])
def test_a_function_with_its_rule(frontend):
    with bg.register_op(bump, interval=bump_interval, elementwise=True, ulps=4) as op:
        check_op(op, cases=30)
        check_op(op, cases=30, dtype=torch.float32)
        model = Net(Calls(op, height=2.0)).eval()
        assert check_model(model, region(), methods=METHODS, points=12, frontend=frontend)
        program = bg.compile(model, region(), frontend=frontend)
        assert "interval.bump" in str(program.ir)
        loose, tight = (bg.bound(model, method=m)(region()) for m in ("ibp", "crown"))
        assert (tight.upper - tight.lower).sum() < (loose.upper - loose.lower).sum()


def test_outside_of_capture_the_function_runs():
    with bg.register_op(bump, interval=bump_interval, elementwise=True) as op:
        x = torch.randn(5)
        assert torch.equal(op(x, height=3.0), bump(x, 3.0))


def test_the_decorator_and_the_sound_rounding():
    @bg.register_op(elementwise=True, increasing=True, ulps=2, name="cube")
    def cube(x):
        return x * x * x

    with cube:
        check_op("cube", cases=20)
        # What a user says of an op is no proof, with ulps or without.
        for method in ("ibp", "symbolic", "mix", "crown-ibp", "crown", "alpha-crown", "auto"):
            with pytest.raises(UnsupportedError, match=r"`cube` has no rounding-sound rule.*user"):
                bg.bound(Net(Calls(cube)).eval(), method=method, rounding="sound")(region())


class Cubes(nn.Module):
    def forward(self, x):
        return cubed(x)


def cubed(x):
    return x * x * x


@pytest.mark.parametrize("kind", ["function", "leaf"])
def test_what_users_register_is_never_certified(kind):
    options = {"elementwise": True, "increasing": True, "ulps": 2}
    part = Cubes()
    known = bg.register_op(cubed, **options) if kind == "function" else bg.leaf(part, **options)
    with known as op:
        model = Net(Calls(op) if kind == "function" else part).eval()
        wide = bg.LinearSpec(torch.ones(1, 2), offset=torch.full((1,), 1e6))
        verdict = bg.verify(model, region(), wide, certificate=True)
        verdict = verdict[0] if isinstance(verdict, list) else verdict
        assert verdict
        assert verdict.certificate is None
        assert "unknown to the checker" in verdict.uncertified
        with pytest.raises(UnsupportedError, match="user"):
            bg.verify(model, region(), wide, rounding="sound")


def test_a_relaxation_of_the_users_is_used():
    def lines(x):
        y = bump_interval(x)
        return bg.Lines.constant(bg.Interval(y.lower - 7.0, y.upper + 7.0))

    options = {"interval": bump_interval, "elementwise": True, "relaxation": lines}
    with bg.register_op(bump, **options) as op:
        check_op(op, cases=20)
        bounds = bg.bound(Net(Calls(op)).eval(), method="crown-ibp")(region())
        assert (bounds.upper - bounds.lower > 10.0).any()


@pytest.mark.parametrize(
    "fault",
    [
        lambda x: bg.Interval(bump(x.lower), bump(x.upper)),
        lambda x: bg.Interval(bump_interval(x).upper, bump_interval(x).lower - 1.0),
        lambda x: bg.Interval(bump_interval(x).lower * torch.nan, bump_interval(x).upper),
        lambda x: bg.Interval(bump_interval(x).lower.sum(), bump_interval(x).upper.sum()),
        lambda x: bg.Interval(bump_interval(x).lower, bump_interval(x).upper * 0.999),
    ],
    ids=["not monotone", "crossed", "nan", "shape", "a little"],
)
def test_a_wrong_rule_is_found(fault):
    with (
        bg.register_op(bump, interval=fault, elementwise=True, ulps=4) as op,
        pytest.raises(SoundnessError, match="bump"),
    ):
        check_op(op, cases=50)


def test_a_wrong_relaxation_is_found():
    def chord(x):
        slope = (bump(x.upper) - bump(x.lower)) / (x.upper - x.lower).clamp(min=1e-6)
        offset = bump(x.lower) - slope * x.lower
        return bg.Lines(slope, offset, slope, offset)

    options = {"interval": bump_interval, "elementwise": True, "relaxation": chord}
    with bg.register_op(bump, **options) as op, pytest.raises(SoundnessError, match="backward"):
        check_op(op)


def test_bounds_of_a_rule_that_crosses_or_gives_nan_are_refused():
    swapped = {"interval": lambda x: bg.Interval(bump_interval(x).upper, bump_interval(x).lower)}
    nan = {"interval": lambda x: bg.Interval(x.lower * torch.nan, x.upper)}
    for rule in (swapped, nan):
        with (
            bg.register_op(bump, elementwise=True, **rule) as op,
            pytest.raises(errors.NonFiniteError),
        ):
            bg.bound(Net(Calls(op)).eval())(region())


def test_rules_that_cannot_be_programs_are_refused_at_the_users_line():
    rules = {
        "gives \\[4\\] and": lambda x: bg.Interval(x.lower[0], x.upper[0]),
        "gives Tensor, not": lambda x: x.lower,
        "meta tensor": lambda x: bg.Interval(x.lower - x.upper.sum().item(), x.upper),
    }
    for text, rule in rules.items():
        with bg.register_op(bump, interval=rule, elementwise=True) as op:
            with pytest.raises(UnsupportedError, match=text) as error:
                bg.bound(Net(Calls(op)).eval())(region())
            assert "test_custom.py" in str(error.value)


def test_registration_errors():
    with (
        bg.register_op(bump, interval=bump_interval, elementwise=True),
        pytest.raises(ConfigError, match="registered already"),
    ):
        bg.register_op(bump, interval=bump_interval)
    with pytest.raises(ConfigError, match="needs an interval rule"):
        bg.register_op(bump)
    with pytest.raises(ConfigError, match="word of letters"):
        bg.register_op(bump, interval=bump_interval, name=["bump"])
    with pytest.raises(ConfigError, match="word of letters"):
        bg.register_op(lambda x: x, interval=bump_interval)
    with pytest.raises(ConfigError, match="registered already"):
        bg.register_op(bump, interval=bump_interval, name="relu")
    with pytest.raises(ConfigError, match="has bound rules already"):
        bg.register_op(torch.relu, interval=bump_interval, name="my_relu")
    with pytest.raises(ConfigError, match="needs elementwise"):
        bg.register_op(bump, interval=bump_interval, relaxation=lambda x: x)
    with pytest.raises(ConfigError, match=r"use bg\.leaf"):
        bg.register_op(nn.ReLU(), interval=bump_interval)
    with pytest.raises(ConfigError, match=r"not of nn\.Module"):
        bg.register_op(dict, interval=bump_interval)
    with pytest.raises(ConfigError, match="takes a module"):
        bg.leaf(bump, interval=bump_interval)
    with pytest.raises(ConfigError, match="function or a module"):
        bg.freeze(3)


def test_removing_an_op_changes_what_a_bound_function_compiles():
    def wide(x, height=1.0):
        return bg.Interval(bump_interval(x).lower - 5.0, bump_interval(x).upper + 5.0)

    first = bg.register_op(bump, interval=bump_interval, elementwise=True)
    middle = Calls(first)
    bounds_of = bg.bound(Net(middle).eval())
    tight = bounds_of(region())
    first.remove()
    first.remove()
    # The old handle is a plain function again, whose body is traced.
    assert "bump" not in str(bg.compile(Net(middle).eval(), region()).ir)
    with bg.register_op(bump, interval=wide, elementwise=True) as second:
        middle.function = second
        loose = bounds_of(region())
    assert (loose.upper - loose.lower > tight.upper - tight.lower).all()


@pytest.mark.parametrize("frontend", ["torch_fx", "torch_export"])
def test_a_leaf_keeps_live_parameters(frontend):
    module = Attend(4)
    sample = lambda rng: OpCase(((rng.randint(1, 3), 4),))  # noqa: E731
    with bg.leaf(module, interval=attend_interval, sample=sample, name="my_attend") as op:
        check_op(op, cases=20)
        model = Net(module).eval()
        assert check_model(model, region(), methods=METHODS, points=8, frontend=frontend)
        program = bg.compile(model, region(), frontend=frontend)
        assert "@middle.inner.weight" in str(program.ir)
        before = program(region())
        with torch.no_grad():
            module.scale.mul_(3.0)
        after = program(region())
        ratio = (after.upper - after.lower) / (before.upper - before.lower)
        assert torch.allclose(ratio, torch.tensor(3.0))
        # A copy is another module: it is traced as usual.
        assert "interval.my_attend" not in str(bg.compile(copy.deepcopy(model), region()).ir)
        with pytest.raises(ConfigError, match="registered already, as 'my_attend'"):
            bg.freeze(module)
    assert "forward" not in module.__dict__


def test_a_class_of_modules():
    def sample(rng: random.Random):
        return Attend(4), OpCase(((rng.randint(1, 3), 4),))

    with bg.register_op(Attend, interval=attend_interval, sample=sample) as op:
        check_op(op, cases=10)
        model = nn.Sequential(nn.Linear(3, 4), Attend(4), nn.Linear(4, 4), Attend(4)).eval()
        assert check_model(model, region(), methods=("ibp", "crown-ibp"), points=8)
        assert str(bg.compile(model, region()).ir).count("interval.Attend") == 2
        with pytest.raises(ConfigError, match="registered already"):
            bg.register_op(Attend, interval=attend_interval, name="again")


def test_gradients_reach_the_parameters_of_a_leaf():
    def rule(module, x):
        radius = nn.functional.linear(x.radius, module.inner.weight.abs())
        return bg.Interval.from_center_radius(module.inner(x.center), radius)

    module = Attend(4)
    with bg.leaf(module, interval=rule):
        bounds = bg.compile(Net(module), region())(region())
        (bounds.upper - bounds.lower).sum().backward()
        assert module.inner.weight.grad is not None


def test_several_operands_may_be_bounded():
    def blend(x, y, *, share):
        return share * x + (1.0 - share) * y

    def rule(x, y, *, share):
        ends = (blend(getattr(x, e), getattr(y, e), share=share) for e in ("lower", "upper"))
        return bg.Interval(*ends)

    def sample(rng):
        return OpCase(((2, 3), (2, 3)), {"share": 0.25}, bounded=(0, 1))

    options = {"interval": rule, "bounded": (0, 1), "sample": sample}
    options["magnitude"] = lambda x, y: x + y
    with bg.register_op(blend, **options) as op:
        # An op of ours has that name.
        assert op.name == "user_blend"
        check_op(op)

        class Blend(nn.Module):
            def forward(self, x):
                return op(torch.sin(x), x, share=0.25) + op(x, torch.ones(3), share=0.5)

        assert check_model(Blend(), region(), methods=METHODS, points=8)


def test_a_function_that_mixes_samples_is_found():
    def rule(x):
        return bg.Interval(x.lower - x.upper.mean(0), x.upper - x.lower.mean(0))

    options = {"sample": lambda rng: OpCase(((3, 2),)), "magnitude": lambda x: x + x.mean(0)}
    with (
        bg.register_op(lambda x: x - x.mean(0), interval=rule, name="mixes", **options) as op,
        pytest.raises(SoundnessError, match="batch rule"),
    ):
        check_op(op)


def test_functions_of_torch_and_operators_of_a_library():
    lower_end = lambda x: bg.Interval(torch.zeros_like(x.lower), torch.ones_like(x.upper))  # noqa: E731

    class Bessel(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x).abs()

    with pytest.raises(UnsupportedError):
        bg.bound(Bessel())(region())
    wide = lambda x: bg.Interval(lower_end(x).lower - 0.5, lower_end(x).upper)  # noqa: E731
    with bg.register_op(torch.special.bessel_j0, interval=wide, elementwise=True):
        for frontend in ("torch_fx", "torch_export"):
            assert check_model(Bessel(), region(), points=6, methods=METHODS, frontend=frontend)


def test_a_frozen_part_is_a_constant_or_refused():
    gate = Attend(3)

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.layer = gate, nn.Linear(3, 3)

        def forward(self, x, context):
            return self.layer(x) * self.gate(context)

    model, context = Gated().eval(), torch.randn(2, 3)
    with bg.freeze(gate):
        for frontend in ("torch_fx", "torch_export"):
            options = {"frontend": frontend}
            assert check_model(model, region(), context, points=6, methods=METHODS, **options)
        with pytest.raises(UnsupportedError, match="frozen, but depends on") as error:
            bg.bound(model, method="crown")(region(), region())
        assert "test_custom.py" in str(error.value)
        bounds = bg.compile(model, region(), context)(region(), context)
        bounds.upper.sum().backward()
        assert gate.inner.weight.grad is not None


def test_random_and_writing_functions_are_refused():
    def noisy(x):
        return x + torch.rand_like(x)

    def writes(x):
        return x.mul_(2.0)

    for function, text in ((noisy, "random"), (writes, "mutation|changes|writes")):
        with (
            bg.register_op(function, interval=lambda x: x, elementwise=True) as op,
            pytest.raises((UnsupportedError, errors.CaptureError), match=text),
        ):
            bg.bound(Net(Calls(op)).eval())(region())


def test_a_saved_program_needs_the_op(tmp_path):
    with bg.register_op(bump, interval=bump_interval, elementwise=True) as op:
        program = bg.compile(Net(Calls(op)).eval(), region())
        program.save(tmp_path / "net.bgp")
        again = bg.load(tmp_path / "net.bgp")(region())
        assert torch.equal(again.lower, program(region()).lower)
    with pytest.raises(CheckpointError, match="bump"):
        bg.load(tmp_path / "net.bgp")
    assert get("bump") is None
