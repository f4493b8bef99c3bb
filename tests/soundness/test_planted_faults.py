"""A wrong rule, planted, is found by the same laws that the right ones pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.domains import Interval, Symbolic
from boundgraph.errors import SoundnessError
from boundgraph.ops import _spec, bounded
from boundgraph.passes import AttachMargin, FoldBatchNorm
from boundgraph.relaxations.relaxation import Parallel
from boundgraph.runtime.module import BoundProgram
from boundgraph.testing import check_model, check_op, excess


class Pictures(nn.Module):
    """Uses every op that a fault below is planted in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 2)
        self.norm = nn.BatchNorm2d(2)
        self.fc = nn.Linear(8, 4)
        self.last = nn.Linear(4, 3)
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([-1.5, 0.7]))
            self.norm.running_mean.copy_(torch.tensor([0.3, -0.2]))
            self.norm.running_var.copy_(torch.tensor([0.5, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(F.pad(x, (1, 0, 1, 0), value=2.0))), 2, 1)
        x = torch.sigmoid(self.fc(self.norm(x).flatten(1)))
        x = x * (torch.tanh(x) - 2.0 * x)
        return torch.softmax(self.last(x), 1) / (x.sum(1, keepdim=True) + 5.0)


def pictures() -> tuple[nn.Module, bg.Box]:
    torch.manual_seed(3)
    model = Pictures().double().eval()
    center = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    return model, bg.Box(center - 0.3, center + 0.3)


METHODS = ("ibp", "symbolic", "mix")


def one_program_two_regions(model: nn.Module, box: bg.Box) -> None:
    """A program's second call gives what a new program gives."""
    other = bg.Box(box.lower + 1.0, box.upper + 1.0)
    program = bg.compile(model, box)
    program(box)
    again, fresh = program(other), bg.compile(model, other)(other)
    if not (torch.equal(again.lower, fresh.lower) and torch.equal(again.upper, fresh.upper)):
        raise SoundnessError("a second call depends on the first")


def look_for_faults() -> None:
    """The laws: bounds hold at points, for a second region too, and each op holds by itself."""
    model, box = pictures()
    check_model(model, box, methods=METHODS, points=60)
    wide = bg.Box(box.lower - 0.5, box.upper + 0.5)
    check_model(model, wide, methods=METHODS, points=60)
    one_program_two_regions(model, box)
    for name in ("relu", "mul", "sub", "softmax", "pad", "batch_norm", "linear", "reciprocal"):
        check_op(name, cases=20)


def test_no_fault_no_alarm() -> None:
    look_for_faults()


def _of(name: str) -> _spec.OpSpec:
    spec = _spec.get(name)
    assert spec is not None
    return spec


def _without_abs(x: Interval, weight: Tensor, *bias: Tensor) -> Interval:
    radius = F.linear(x.radius, weight)
    return Interval.from_center_radius(F.linear(x.center, weight, *bias), radius)


def _without_bias(x: Interval, weight: Tensor, *_: Tensor) -> Interval:
    radius = F.linear(x.radius, weight.abs())
    return Interval.from_center_radius(F.linear(x.center, weight), radius)


def _swapped_ends(x: Interval, **_: Any) -> Interval:
    return Interval(F.relu(x.upper), F.relu(x.lower))


def _one_corner(a: Any, b: Any) -> Interval:
    if not (isinstance(a, Interval) and isinstance(b, Interval)):
        return right["mul"](a, b)
    return Interval(a.lower * b.lower, a.upper * b.upper)


def _maximum_for_minimum(a: Any, b: Any) -> Interval:
    found = right["mul"](a, b)
    if isinstance(a, Interval) and isinstance(b, Interval):
        return Interval(torch.maximum(a.lower * b.lower, a.lower * b.upper), found.upper)
    return found


def _sub_like_add(a: Any, b: Any) -> Interval:
    if isinstance(a, Interval) and isinstance(b, Interval):
        return Interval(a.lower - b.lower, a.upper - b.upper)
    return right["sub"](a, b)


def _padded_radius(x: Interval, **attrs: Any) -> Interval:
    pad = _of("pad").concrete
    # Radius padded with a negative value: the border's bounds move inwards past each other.
    return Interval.from_center_radius(
        pad(x.center, **{**attrs, "value": 0.0}), pad(x.radius, **{**attrs, "value": 0.0})
    )


def _gamma_sign(x: Interval, mean: Tensor, var: Tensor, *scale: Tensor, eps: float) -> Interval:
    radius = F.batch_norm(x.radius, torch.zeros_like(mean), var, *scale[:1], eps=eps)
    center = F.batch_norm(x.center, mean, var, *scale, eps=eps)
    return Interval.from_center_radius(center, radius)


def _softmax_of_ends(x: Interval, *, dim: int) -> Interval:
    return Interval(x.lower.softmax(dim), x.upper.softmax(dim))


def _pool_lower_twice(x: Interval, **attrs: Any) -> Interval:
    lower = _of("max_pool2d").concrete(x.lower, **attrs)
    return Interval(lower, lower)


def _reciprocal_across_zero(x: Interval) -> Interval:
    return Interval(1.0 / x.upper, 1.0 / x.lower)


INTERVAL_FAULTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "linear drops the absolute value": ("linear", _without_abs),
    "linear forgets the bias": ("linear", _without_bias),
    "relu swaps the ends": ("relu", _swapped_ends),
    "mul takes one corner": ("mul", _one_corner),
    "mul takes max for min": ("mul", _maximum_for_minimum),
    "sub does not cross the ends": ("sub", _sub_like_add),
    "pad loses its value": ("pad", _padded_radius),
    "batch norm keeps the sign of gamma": ("batch_norm", _gamma_sign),
    "softmax maps the ends": ("softmax", _softmax_of_ends),
    "max pool uses the lower end twice": ("max_pool2d", _pool_lower_twice),
    "reciprocal ignores the pole": ("reciprocal", _reciprocal_across_zero),
}
right: dict[str, Callable[..., Any]] = {}


@pytest.mark.parametrize("fault", INTERVAL_FAULTS)
def test_wrong_interval_rule(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, rule = INTERVAL_FAULTS[fault]
    spec = _of(name)
    assert spec.interval is not None
    right[name] = spec.interval
    monkeypatch.setitem(_spec._OPS, name, replace(spec, interval=rule))
    with pytest.raises(SoundnessError):
        look_for_faults()


def _wrong_lines(change: Callable[[Parallel], Parallel], name: str) -> Callable[..., Any]:
    symbolic = _of(name).symbolic
    assert symbolic is not None

    def rule(x: Symbolic, pre: Interval, **options: Any) -> Symbolic:
        zero = Symbolic(torch.zeros_like(x.center), {"p": torch.ones_like(x.center)[None]})
        lines = symbolic(zero, pre, **options)
        block = lines.blocks[options["block"]]
        found = change(Parallel(lines.blocks["p"][0], lines.center, block))
        scaled = x.map(lambda c: found.slope * c + found.middle, lambda g: found.slope * g)
        return scaled.with_block(options["block"], found.half_gap)

    return rule


SYMBOLIC_FAULTS: dict[str, tuple[str, Callable[[Parallel], Parallel]]] = {
    "relu drops its error block": ("relu", lambda p: replace(p, half_gap=p.half_gap * 0.0)),
    "relu halves its error block": ("relu", lambda p: replace(p, half_gap=p.half_gap * 0.5)),
    "relu takes the slope of the active side": (
        "relu",
        lambda p: replace(p, slope=torch.ones_like(p.slope)),
    ),
    "sigmoid takes too large a slope": ("sigmoid", lambda p: replace(p, slope=p.slope + 0.05)),
    "tanh forgets the middle": ("tanh", lambda p: replace(p, middle=p.middle * 0.0)),
}


class Difference(nn.Module):
    """f(h) − c·h: what is left shows the slope and the offsets of f's lines."""

    def __init__(self, name: str, factor: float) -> None:
        super().__init__()
        self.f, self.factor = getattr(torch, name), factor

    def forward(self, x: Tensor) -> Tensor:
        h = 2.0 * x
        return self.f(h) - self.factor * h


def lines_in_a_network(name: str) -> None:
    for factor in (0.0, 0.1, 0.5, 1.0):
        for center in (-1.0, -0.2, 0.3, 1.0):
            middle = torch.full((1, 2), center, dtype=torch.float64)
            box = bg.Box(middle - 0.5, middle + 0.5)
            check_model(Difference(name, factor), box, methods=("symbolic",), points=12)


@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh"])
def test_no_fault_in_the_lines_no_alarm(name: str) -> None:
    lines_in_a_network(name)


@pytest.mark.parametrize("fault", SYMBOLIC_FAULTS)
def test_wrong_lines(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, change = SYMBOLIC_FAULTS[fault]
    spec = replace(_of(name), symbolic=_wrong_lines(change, name))
    monkeypatch.setitem(_spec._OPS, name, spec)
    with pytest.raises(SoundnessError):
        check_op(name, cases=20)
    with pytest.raises(SoundnessError):
        lines_in_a_network(name)


def test_concretize_without_abs(monkeypatch: pytest.MonkeyPatch) -> None:
    def signed(x: Symbolic) -> Interval:
        radius = sum(block.sum(0) for block in x.blocks.values())
        return Interval.from_center_radius(x.center, radius)  # type: ignore[arg-type]

    monkeypatch.setitem(bounded.BOUND_ONLY, "symbolic.concretize", signed)
    with pytest.raises(SoundnessError):
        look_for_faults()


def test_meet_takes_the_union_of_the_wrong_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def meet(a: Interval, b: Interval) -> Interval:
        return Interval(torch.maximum(a.lower, b.lower), torch.minimum(a.lower, b.upper))

    monkeypatch.setitem(bounded.BOUND_ONLY, "interval.meet", meet)
    with pytest.raises(SoundnessError):
        look_for_faults()


@pytest.mark.parametrize("fault", ["scale forgets eps", "shift forgets the mean"])
def test_wrong_fold(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3, eps=0.5)
    norm.running_mean.normal_()
    model = nn.Sequential(nn.Linear(2, 3), norm, nn.ReLU()).double().eval()
    if fault == "scale forgets eps":
        spec = _of("batch_norm_scale")
        wrong = replace(spec, concrete=lambda var, *w, eps: var.rsqrt() * (w[0] if w else 1.0))
        monkeypatch.setitem(_spec._OPS, spec.name, wrong)
    else:
        add = FoldBatchNorm._fold

        def fold(self: FoldBatchNorm, node: Any, ctx: Any) -> Any:
            found = add(self, node, ctx)
            if found is None:
                return None
            layer = ctx.producer(found)
            return ctx.add(layer.op, layer.inputs[:2] + node.inputs[4:5], found.type, layer.attrs)

        monkeypatch.setattr(FoldBatchNorm, "_fold", fold)
    box = bg.Box(torch.zeros(1, 2).double(), torch.ones(1, 2).double())
    with pytest.raises(SoundnessError):
        check_model(model, box, methods=("ibp",), points=10)


def test_margin_of_the_wrong_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _of("linear_margin")
    assert spec.interval is not None
    correct = spec.interval

    def negated(*operands: Any, **attrs: Any) -> Interval:
        found = correct(*operands, **attrs)
        return Interval(-found.upper, -found.lower)

    monkeypatch.setitem(_spec._OPS, spec.name, replace(spec, interval=negated))
    with pytest.raises(SoundnessError):
        check_op("linear_margin", cases=10)
    assert AttachMargin(3).classes == 3


def test_stale_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    run, memory = BoundProgram.run, {}  # type: ignore[var-annotated]

    def remembers(self: BoundProgram, inputs: Any, *rest: Any, **options: Any) -> Any:
        key = (id(self), tuple(inputs[0].lower.shape))
        if key not in memory:
            memory[key] = run(self, inputs, *rest, **options)
        return memory[key]

    monkeypatch.setattr(BoundProgram, "run", remembers)
    model, box = pictures()
    with pytest.raises(SoundnessError):
        one_program_two_regions(model, box)


def test_nan_is_no_bound() -> None:
    """A rule that gives NaN certifies nothing: the law counts it as a violation."""
    nan = Interval(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
    assert excess(torch.zeros(1), nan).item() == torch.inf
