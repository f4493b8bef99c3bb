"""Portions of rows and samples: the same bounds, within memory, and only where they matter."""

import itertools
import random

import pytest
import torch
from torch import nn

from boundgraph import ops
from boundgraph.compiler import bound, compile
from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm, one_hot_rows
from boundgraph.domains.regions import L1Ball, L2Ball, LinfBall
from boundgraph.domains.specs import Margin
from boundgraph.errors import ConfigError
from boundgraph.runtime.emit import parameter_lookup
from boundgraph.runtime.memory import outside_bytes, peak_bytes, row_bytes
from boundgraph.runtime.module import BoundProgram
from boundgraph.runtime.rows import RowRunner, Usage


class Mixed(nn.Module):
    """A residual block, pooling, a smooth function and two readers of one value."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.last = nn.Conv2d(4, 3, 2)
        self.head = nn.Linear(27, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.relu(self.first(x))
        b = torch.relu(self.second(a)) + a
        c = nn.functional.leaky_relu(self.last(nn.functional.max_pool2d(b, 2, 1, 1)), 0.1)
        return self.head(torch.tanh(c)[:, :, :3, :3].flatten(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return Mixed().double()


def dense() -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 4)]
    return nn.Sequential(*layers).double()


def runner(program: BoundProgram) -> RowRunner:
    return RowRunner(program.ir, parameter_lookup(program.model, program.constants))


def least_budget(run: RowRunner) -> int:
    """Bytes for one row of one sample."""
    one = max((row_bytes(walk, 1) for walk in run.walks), default=0.0)
    return int(outside_bytes(run.program, run.steps, 1) + one) + 1


@pytest.mark.parametrize("method", ["ibp", "symbolic", "crown-ibp", "crown"])
@pytest.mark.parametrize("dynamic", [None, False])
def test_portions_give_the_same_bounds(method: str, dynamic: bool | None) -> None:
    x = torch.rand(3, 1, 7, 7, dtype=torch.float64)
    region = LinfBall(x, 0.03)
    program = compile(network(), region, method=method, dynamic_batch=dynamic)
    with torch.no_grad():
        whole = program.run([region.interval()])
        need = peak_bytes(program.ir, 3)
        for budget in (need, max(need // 5, least_budget(runner(program))), None):
            usage = Usage()
            part = program.run_within([region.interval()], None, budget, usage)
            torch.testing.assert_close(part.lower, whole.lower, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(part.upper, whole.upper, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("region_of", [L2Ball, L1Ball])
def test_balls_go_through_in_portions(region_of: type) -> None:
    region = region_of(torch.rand(3, 6).double(), 0.4)
    program = compile(dense(), region, method="crown")
    inputs = program.check(region)
    usage = Usage()
    with torch.no_grad():
        whole = program.run(inputs)
        part = program.run_within(inputs, None, 40_000, usage)
    assert usage.samples == 1
    torch.testing.assert_close(part.lower, whole.lower)
    torch.testing.assert_close(part.upper, whole.upper)


def test_the_smallest_budget_takes_one_row_of_one_sample() -> None:
    region, labels = LinfBall(torch.rand(4, 6).double(), 0.3), torch.tensor([0, 1, 2, 3])
    program = compile(dense(), region, method="crown", spec=Margin(4))
    run, usage = runner(program), Usage()
    with torch.no_grad():
        whole = program.run([region.interval()], labels)
        part = run.run_portions([region.interval(), labels], least_budget(run), usage)[0]
    assert usage.samples == 1
    assert max(usage.chunk.values()) == 1
    torch.testing.assert_close(part.lower, whole.lower)
    with pytest.raises(ConfigError, match="max_memory"):
        run.run_portions([region.interval(), labels], least_budget(run) // 2, usage)


def test_a_budget_reaches_bound_and_is_checked() -> None:
    region = LinfBall(torch.rand(4, 6).double(), 0.3)
    plain = bound(dense(), method="crown")(region)
    tight = bound(dense(), method="crown", max_memory=60_000)(region)
    torch.testing.assert_close(plain.lower, tight.lower)
    with pytest.raises(ConfigError, match="needs about"):
        bound(dense(), method="crown", max_memory=100)(region)
    with pytest.raises(ConfigError, match="positive"):
        bound(dense(), method="crown", max_memory=0)(region)


def test_rows_of_stable_elements_are_not_walked() -> None:
    model, x = dense(), torch.rand(5, 6).double()
    program = compile(model, LinfBall(x, 1e-3), method="crown")
    usage = Usage()
    with torch.no_grad():
        program.run_within([LinfBall(x, 1e-3).interval()], None, None, usage)
        boxes = bound(model[:3], method="ibp")(LinfBall(x, 1e-3))
    (hidden,) = (name for name in usage.rows if name.endswith("_bounds"))
    unstable = ((boxes.lower < 0) & (boxes.upper > 0)).sum(1)
    assert usage.rows[hidden] == int(unstable.max()) * 5
    assert usage.of[hidden] == 30 * 5


def test_no_row_at_all_where_everything_is_stable() -> None:
    model, x = dense(), torch.rand(2, 6).double()
    region, usage = LinfBall(x, 0.0), Usage()
    program = compile(model, region, method="crown")
    with torch.no_grad():
        found = program.run_within([region.interval()], None, None, usage)
    torch.testing.assert_close(found.lower, model(x))
    assert sum(rows for name, rows in usage.rows.items() if name.endswith("_bounds")) == 0


def test_gradients_pass_through_portions() -> None:
    model, region = dense(), LinfBall(torch.rand(3, 6).double(), 0.2)
    program = compile(model, region, method="crown")
    grads = []
    for budget in (None, 60_000):
        model.zero_grad()
        usage = Usage()
        program.run_within([region.interval()], None, budget, usage).lower.sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert min(usage.chunk.values()) < 30
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


WITH_UNITS = [spec for spec in ops.all_ops() if spec.unit_rows is not None]


@pytest.mark.parametrize("spec", WITH_UNITS, ids=lambda spec: spec.name)
def test_unit_rows_are_the_backward_of_one_hot_rows(spec: ops.OpSpec) -> None:
    rng, made = random.Random(0), 0
    assert spec.sample is not None and spec.backward is not None and spec.unit_rows is not None
    for _ in range(40):
        case = spec.sample(rng)
        operands = [torch.rand(shape, dtype=torch.float64) for shape in case.shapes]
        target = spec.concrete(*operands, **case.attrs)[:1].shape
        units = torch.randperm(target.numel())[:4]
        seed = one_hot_rows(operands[0], shape=tuple(target), batch_dim=0, units=units)
        shapes = ((1, *case.shapes[0][1:]), *case.shapes[1:])
        attrs = {
            "shapes": shapes,
            "target": tuple(target),
            "operand": 0,
            "carry": True,
            "sample_dims": tuple(range(2, len(target) + 1)),
            **case.attrs,
        }
        found: LinearForm | None = spec.unit_rows(units, *operands[1:], **attrs)
        if found is None:
            continue
        made += 1
        wanted: LinearForm = spec.backward(seed, *operands[1:], **attrs)
        torch.testing.assert_close(found.coeff, wanted.coeff)
        assert (found.offset is None) == (wanted.offset is None)
        if found.offset is not None:
            torch.testing.assert_close(found.offset, wanted.offset)
    assert made > 5


WITH_KINKS = [spec for spec in ops.all_ops() if spec.kinks is not None]


@pytest.mark.parametrize("spec", WITH_KINKS, ids=lambda spec: spec.name)
def test_lines_are_exact_where_no_kink_splits_the_interval(spec: ops.OpSpec) -> None:
    rng = random.Random(0)
    assert spec.sample is not None and spec.kinks is not None and spec.lines is not None
    for _ in range(20):
        case = spec.sample(rng)
        kinks = spec.kinks(**case.attrs)
        if kinks is None:
            continue
        edges = [min(kinks) - 2.0, *sorted(kinks), max(kinks) + 2.0]
        for low, high in itertools.pairwise(edges):
            x = torch.linspace(low, high, 9, dtype=torch.float64)
            lines = spec.lines(Interval(x[:1], x[-1:]), **case.attrs)
            y = spec.concrete(x, **case.attrs)
            torch.testing.assert_close(lines.lower_slope * x + lines.lower_offset, y)
            torch.testing.assert_close(lines.upper_slope * x + lines.upper_offset, y)


@pytest.mark.nightly
def test_a_thousand_outputs_of_a_resnet_fit() -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model, region = resnet18().eval(), LinfBall(torch.rand(1, 3, 64, 64), 1e-4)
    program = compile(model, region, method="crown-ibp")
    usage = Usage()
    with torch.no_grad():
        found = program.run_within([region.interval()], None, 1 << 30, usage)
    assert usage.chunk["%linear_backward"] < 1000
    assert bool((found.lower <= model(region.center)).all())
