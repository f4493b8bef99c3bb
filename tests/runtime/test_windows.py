"""Walks over windows, and slopes of their own for rows: the same bounds, or tighter ones."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from boundgraph import ops
from boundgraph.compiler import compile
from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm, Lines
from boundgraph.domains.regions import LinfBall
from boundgraph.domains.specs import Margin
from boundgraph.errors import InternalError
from boundgraph.runtime import slopes
from boundgraph.runtime.emit import parameter_lookup
from boundgraph.runtime.interpret import DimSizes, run_node
from boundgraph.runtime.module import BoundProgram
from boundgraph.runtime.rows import RowRunner
from boundgraph.runtime.slopes import Slopes
from boundgraph.runtime.transposed import conv2d_backward
from boundgraph.runtime.windows import WindowWalk
from boundgraph.testing import check_model

KINKED = (nn.ReLU(), nn.LeakyReLU(0.1), nn.Hardtanh(-0.5, 0.5))
SMOOTH = (nn.Sigmoid(), nn.Tanh())


class Images(nn.Module):
    """A random network of convolutions, with branches, and convolutions in a row."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        rng = random.Random(seed)
        self.first = self._layer(rng, rng.randint(1, 2), 3, rng.choice((1, 2)))
        self.left = self._same(rng, 3)
        self.right = self._same(rng, 1)
        self.twice = self._same(rng, 3, dilation=rng.choice((1, 2)))
        self.last = self._layer(rng, 3, 2, rng.choice((1, 2)))
        self.kinds = (
            rng.choices(KINKED, k=3) if seed % 3 else [KINKED[0], SMOOTH[seed % 2], KINKED[0]]
        )
        self.skip = rng.random() < 0.5
        self.head = nn.LazyLinear(4)
        self(torch.zeros(self.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, self.first.in_channels, 14, 14)

    @staticmethod
    def _layer(rng: random.Random, inputs: int, outputs: int, stride: int) -> nn.Conv2d:
        kernel = (rng.randint(2, 3), rng.randint(1, 3))
        padding = rng.choice((0, 1, 2))
        return nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=rng.random() < 0.7)

    @staticmethod
    def _same(rng: random.Random, kernel: int, dilation: int = 1) -> nn.Conv2d:
        padding = dilation * (kernel - 1) // 2
        bias = rng.random() < 0.7
        return nn.Conv2d(3, 3, kernel, 1, padding, dilation=dilation, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        a = self.kinds[0](self.first(x))
        b = self.left(a) + (a if self.skip else self.right(a))
        c = self.kinds[1](b)
        d = self.kinds[2](self.last(self.twice(c)))
        return self.head(d.flatten(1))


def runner(program: BoundProgram) -> RowRunner:
    return RowRunner(program.ir, parameter_lookup(program.model, program.constants))


def region_of(model: Images, seed: int) -> LinfBall:
    rng = torch.Generator().manual_seed(seed)
    return LinfBall(torch.rand((3, *model.shape[1:]), dtype=torch.float64, generator=rng), 0.05)


@pytest.mark.parametrize("seed", range(18))
def test_windows_give_the_bounds_of_whole_values(seed: int) -> None:
    model = Images(seed).double()
    region = region_of(model, seed)
    program = compile(model, region, method="crown")
    with torch.no_grad():
        whole = program.run([region.interval()])
        part = program.run_within([region.interval()])
    run = runner(program)
    assert any(run.plan(walk) is not None for walk in run.walks)
    torch.testing.assert_close(part.lower, whole.lower, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(part.upper, whole.upper, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("budget", [200_000, 1_000_000])
def test_windows_in_portions(budget: int) -> None:
    model = Images(1).double()
    region = region_of(model, 1)
    program = compile(model, region, method="crown")
    with torch.no_grad():
        whole = program.run([region.interval()])
        part = program.run_within([region.interval()], None, budget)
    torch.testing.assert_close(part.lower, whole.lower, rtol=1e-11, atol=1e-11)


def test_parallel_lines_walk_whole_values() -> None:
    model = Images(1).double()
    region = region_of(model, 1)
    program = compile(model, region, method="symbolic", schedule="backward")
    with torch.no_grad():
        whole = program.run([region.interval()])
        part = program.run_within([region.interval()], None, 200_000)
    torch.testing.assert_close(part.lower, whole.lower, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("seed", range(6))
def test_bounds_with_windows_hold(seed: int) -> None:
    model = Images(seed).to(torch.float32 if seed % 2 else torch.float64)
    x = torch.rand(2, *model.shape[1:], dtype=next(model.parameters()).dtype)
    methods = ("crown", "alpha-crown")
    assert check_model(model, LinfBall(x, 0.05), methods=methods, points=20, seed=seed)


@pytest.mark.parametrize("seed", range(4))
def test_any_slopes_of_rows_are_sound(seed: int) -> None:
    """Rows with random slopes lie below what the network computes, and below the best of them."""
    model = Images(3 * seed + 1).double()
    region = region_of(model, seed)
    program = compile(model, region, method="alpha-crown")
    run, names = runner(program), frozenset(program.info.slopes)
    inputs = [region.interval(), *([None] * len(names))]
    values = {str(v): given for v, given in zip(program.ir.inputs, inputs, strict=True)}
    values |= {str(p): run.lookup(p.name) for p in program.ir.params}
    sizes = DimSizes(program.ir, values)
    with torch.no_grad():
        for node in program.ir.nodes:
            values[str(node.result)] = run_node(node, values, sizes)
    walk = next(w for w in run.walks if run.plan(w) is not None)
    plan = run.plan(walk)
    assert plan is not None
    shared = WindowWalk(plan, walk, values, sizes)
    sample, unit = torch.arange(3).repeat_interleave(8), torch.randint(walk.rows, (24,))
    units = shared.units(sample, unit)
    chosen = Slopes(names)
    units.run(chosen)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, slope in chosen.given.items():
            chosen.given[name] = torch.rand(slope.shape, dtype=torch.float64, generator=rng)
        total = units.run(chosen)
        best = slopes.ascend(units.run, names, 5, 0.5)
    assert bool((best + 1e-12 * best.abs() >= units.run()).all())
    outer = values[str(walk.result)]
    picked = outer.lower.flatten(1)[sample, unit], outer.upper.flatten(1)[sample, unit]
    # Both enclose what the network computes, so neither lies beyond the other.
    for found in (total, best):
        assert bool((found[0] <= -found[1]).all())
        assert bool((found[0] <= picked[1]).all() and (-found[1] >= picked[0]).all())


def test_own_slopes_are_never_looser_than_crown_and_often_tighter() -> None:
    gains = []
    for seed in (1, 2):
        model = Images(seed).double()
        region = region_of(model, seed)
        bounds = {}
        for method in ("crown", "alpha-crown"):
            program = compile(model, region, method=method, spec=Margin(4))
            bounds[method] = program(region, labels=torch.tensor([0, 1, 2])).lower
        gain = bounds["alpha-crown"] - bounds["crown"]
        assert float(gain.min()) >= -1e-12 * float(bounds["crown"].abs().max())
        gains.append(float(gain.max()))
    assert max(gains) > 1e-4


def test_more_steps_and_decided_rows() -> None:
    model = Images(2).double()
    region, labels = region_of(model, 2), torch.tensor([0, 1, 2])
    program = compile(model, region, method="alpha-crown", spec=Margin(4))
    assert hasattr(program, "search")
    plain = program(region, labels=labels).lower
    program.search = replace(program.search, decided=True)
    everything = program(region, labels=labels).lower
    assert bool((everything >= plain - 1e-12).all())
    program.search = replace(program.search, iterations=0, inner_iterations=0)
    crown = compile(model, region, method="crown", spec=Margin(4))(region, labels=labels).lower
    torch.testing.assert_close(program(region, labels=labels).lower, crown)


def test_lines_that_use_a_slope_otherwise_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    region = LinfBall(torch.zeros(2, 3), 1.0)
    program = compile(model, region, method="alpha-crown")
    relu = ops.get("relu")
    assert relu is not None and relu.lines is not None
    honest = relu.lines

    def halved(x: Interval, slope: Tensor | None = None) -> Lines:
        return honest(x, None if slope is None else slope * 0.5)

    monkeypatch.setattr(slopes, "get", lambda name: replace(relu, lines=halved))
    with pytest.raises(InternalError, match="free slope"):
        program(region)


def test_a_search_that_meets_nan_says_so() -> None:
    total = slopes.ascend(lambda _: torch.tensor([[float("nan"), 1.0]]), frozenset(), 3, 0.5)
    assert bool(total.isnan()[0, 0]) and float(total[0, 1]) == 1.0


def test_quick_transposed_convolutions_are_the_rule() -> None:
    spec, rng = ops.get("conv2d"), random.Random(0)
    assert spec is not None and spec.sample is not None and spec.backward is not None
    for _ in range(60):
        case = spec.sample(rng)
        x, weight, *bias = (torch.rand(shape, dtype=torch.float64) for shape in case.shapes)
        if rng.random() < 0.5:
            weight = torch.rand(weight.shape[0], weight.shape[1], 5, 5, dtype=torch.float64)
        try:
            target = spec.concrete(x, weight, *bias, **case.attrs).shape
        except RuntimeError:
            continue
        form = LinearForm(torch.randn(4, *target, dtype=torch.float64), torch.zeros(4, len(x)))
        attrs = {
            "shapes": (tuple(x.shape), tuple(weight.shape)),
            "target": tuple(target),
            "operand": 0,
            "carry": True,
            "sample_dims": (2, 3, 4),
            **case.attrs,
        }
        found, wanted = (
            conv2d_backward(form, weight, *bias, **attrs),
            spec.backward(form, weight, *bias, **attrs),
        )
        torch.testing.assert_close(found.coeff, wanted.coeff)
        torch.testing.assert_close(found.offset, wanted.offset)
