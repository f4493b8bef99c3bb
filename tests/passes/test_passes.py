"""Each pass: its text before and after, what it declares about bounds, what it leaves alone."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import boundgraph as bg
from boundgraph import passes
from boundgraph.domains import Interval
from boundgraph.errors import SpecError, UnsupportedError, VerifyError
from boundgraph.frontends.capture import Capture, capture
from boundgraph.ir.parser import parse_program
from boundgraph.ir.program import Program
from boundgraph.ir.types import Stage
from boundgraph.ops._infer import RegistryTable
from boundgraph.passes import (
    AttachLinear,
    AttachMargin,
    BoundedCommonSubexpressions,
    BoundedDeadCode,
    CleanStatistics,
    CommonSubexpressions,
    DeadCode,
    Effect,
    FoldAffine,
    FoldBatchNorm,
    FoldSpec,
    Pass,
    RelaxBackward,
    RelaxIBP,
    RelaxSymbolic,
    run_pipeline,
)
from boundgraph.runtime.emit import ConstantTable, parameter_lookup
from boundgraph.runtime.interpret import interpret


class Twice(nn.Module):
    """Computes one thing twice and another for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.fc(x).tanh()
        return F.relu(self.fc(x)) - F.relu(self.fc(x)) * 0.5


def mlp(*sizes: int, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b, bias=bias) for a, b in zip(sizes, sizes[1:])))  # noqa: B905, RUF007


def norm(layer: nn.Module, kind: type = nn.BatchNorm2d, **options: Any) -> nn.Sequential:
    width = layer.weight.shape[0]  # type: ignore[union-attr, index]
    made = kind(width, **options)
    made.running_mean.normal_()
    made.running_var.uniform_(0.5, 2.0)
    if made.weight is not None:
        made.weight.data.normal_()
        made.bias.data.normal_()
    return nn.Sequential(layer, made, nn.ReLU())


VECTOR, IMAGE = (2, 3), (2, 2, 4, 4)
# Name of the golden file: pass, model, input shape.
CASES: dict[str, tuple[Pass, Callable[[], nn.Module], tuple[int, ...]]] = {
    "dce": (DeadCode(), Twice, VECTOR),
    "cse": (CommonSubexpressions(), Twice, VECTOR),
    "fold_affine": (FoldAffine(), lambda: mlp(3, 4, 2), VECTOR),
    "fold_affine_no_bias": (FoldAffine(), lambda: mlp(3, 4, 2, bias=False), VECTOR),
    "fold_batchnorm_conv": (FoldBatchNorm(), lambda: norm(nn.Conv2d(2, 3, 3)), IMAGE),
    "fold_batchnorm_groups_no_bias": (
        FoldBatchNorm(),
        lambda: norm(nn.Conv2d(2, 4, 3, groups=2, bias=False)),
        IMAGE,
    ),
    "fold_batchnorm_plain": (
        FoldBatchNorm(),
        lambda: norm(nn.Linear(3, 4), nn.BatchNorm1d, affine=False),
        VECTOR,
    ),
    "attach_margin": (AttachMargin(3), lambda: mlp(3, 3), VECTOR),
    "attach_linear": (AttachLinear((2, 3), (2,)), lambda: mlp(3, 3), VECTOR),
    "attach_linear_per_sample": (AttachLinear((2, 2, 3), (2, 2)), lambda: mlp(3, 3), VECTOR),
    "clean_statistics": (
        CleanStatistics(),
        lambda: norm(nn.Conv2d(2, 3, 3)).train(),
        IMAGE,
    ),
    "relax_ibp": (RelaxIBP(("x",)), lambda: norm(nn.Conv2d(2, 3, 3)), IMAGE),
    "relax_symbolic": (RelaxSymbolic(("x",)), lambda: nn.Sequential(*mlp(3, 2), nn.ReLU()), VECTOR),
    "relax_mix": (
        RelaxSymbolic(("x",), mix=True),
        lambda: nn.Sequential(*mlp(3, 2), nn.ReLU(), nn.Softmax(1)),
        VECTOR,
    ),
    "relax_crown_ibp": (
        RelaxBackward(("x",)),
        lambda: nn.Sequential(*mlp(3, 2), nn.ReLU(), *mlp(2, 2)),
        VECTOR,
    ),
    "relax_crown": (
        RelaxBackward(("x",), intermediate=True),
        lambda: nn.Sequential(*mlp(3, 2), nn.ReLU(), *mlp(2, 2)),
        VECTOR,
    ),
}


class Named(nn.Module):
    """Calls the input `x`, whatever the model calls it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = model

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def captured(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Capture:
    torch.manual_seed(0)
    model = make()
    model = (
        Named(model).double() if not model.training or isinstance(model, Twice) else Named(model)
    )
    training = any(isinstance(m, nn.BatchNorm2d) and m.training for m in model.modules())
    keep = make is CASES["clean_statistics"][1]
    model = model.double().train(training and keep)
    return capture(model, (torch.rand(shape, dtype=torch.float64),), {})


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, golden: Callable[[str, str], None]) -> None:
    step, make, shape = CASES[name]
    program = captured(make, shape).program
    (after, (record,)) = run_pipeline(program, (step,), RegistryTable())
    golden(f"passes/{name}.txt", f"# {step}\n# before\n{program}\n# after\n{after}")
    assert record.name == str(step)
    assert (record.nodes_before, record.nodes_after) == (len(program.nodes), len(after.nodes))
    assert parse_program(str(after)) == after
    assert parse_program(record.text) == after
    assert step.run(program) == after


def bounds(program: Program, found: Capture, box: Interval, extra: tuple[Any, ...]) -> Interval:
    relaxed, _ = run_pipeline(program, (RelaxIBP(("x",)),), RegistryTable())
    constants = dict(found.constants) | SPECS
    lookup = parameter_lookup(found.root, ConstantTable(constants))
    with torch.no_grad():
        (out,) = interpret(relaxed, [box, *extra], lookup)
    return out


SPECS = {
    "spec.matrix": torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0]], dtype=torch.float64),
    "spec.offset": torch.tensor([0.5, -0.5], dtype=torch.float64),
}
REWRITES = [
    name for name, (step, _, _) in CASES.items()
    if step.stage is Stage.CONCRETE and step.effect is not Effect.RELAXES
    and not name.startswith("attach")
]  # fmt: skip


@pytest.mark.parametrize("name", REWRITES)
def test_declared_effect(name: str) -> None:
    """Exact passes keep the bounds up to rounding, tightening ones never loosen them."""
    step, make, shape = CASES[name]
    found = captured(make, shape)
    after = step.run(found.program)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        center = torch.randn(shape, generator=generator, dtype=torch.float64)
        radius = torch.rand(shape, generator=generator, dtype=torch.float64) * (seed > 0)
        box = Interval(center - radius, center + radius)
        before, rewritten = bounds(found.program, found, box, ()), bounds(after, found, box, ())
        region = bg.Box(box.lower, box.upper)
        (moved,) = bg_allowance(found.root, region)
        assert (rewritten.lower >= before.lower - 4 * moved).all()
        assert (rewritten.upper <= before.upper + 4 * moved).all()
        if step.effect is Effect.EXACT:
            assert (rewritten.lower <= before.lower + 4 * moved).all()
            assert (rewritten.upper >= before.upper - 4 * moved).all()


def bg_allowance(model: nn.Module, region: bg.Box) -> tuple[Tensor, ...]:
    from boundgraph.testing import model_allowance

    return model_allowance(model, region)


@pytest.mark.parametrize("classes", [3, 40])
def test_fold_spec_is_tighter(classes: int, golden: Callable[[str, str], None]) -> None:
    torch.manual_seed(0)
    found = captured(lambda: nn.Sequential(*mlp(3, 5), nn.ReLU(), *mlp(5, classes)), VECTOR)
    plain, _ = run_pipeline(found.program, (AttachMargin(classes),), RegistryTable())
    folded, _ = run_pipeline(plain, (FoldSpec(), DeadCode()), RegistryTable())
    golden(f"passes/fold_spec_{classes}.txt", f"# before\n{plain}\n# after\n{folded}")
    center = torch.randn(2, 3, dtype=torch.float64)
    box, labels = Interval(center - 0.3, center + 0.3), torch.tensor([0, classes - 1])
    before, after = (bounds(p, found, box, (labels,)) for p in (plain, folded))
    assert (after.lower >= before.lower - 1e-12 * before.lower.abs()).all()
    assert (after.upper <= before.upper + 1e-12 * before.upper.abs()).all()
    assert (after.upper - after.lower < before.upper - before.lower).any()


def test_folds_leave_shared_values_alone() -> None:
    """A layer that something else reads too is not merged away."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.conv, self.norm = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3).eval()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(x)
            z = self.conv(x.unsqueeze(2))
            return self.b(y) + y, self.norm(z) + z

    found = capture(Shared().eval(), (torch.rand(2, 3),), {})
    for step in (FoldAffine(), FoldBatchNorm()):
        assert step.run(found.program) == found.program


def test_fold_affine_does_not_grow_the_program() -> None:
    """3 → 2 → 3: the product of the pair is larger than the pair."""
    found = captured(lambda: mlp(6, 2, 6), (2, 6))
    assert FoldAffine().run(found.program) == found.program


def test_passes_are_frozen_and_named() -> None:
    steps = [
        value for value in vars(passes).values()
        if isinstance(value, type) and issubclass(value, Pass) and not inspect.isabstract(value)
    ]  # fmt: skip
    assert len({step.name for step in steps}) == len(steps)
    for step in steps:
        assert dataclasses.is_dataclass(step) and step.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert isinstance(step.stage, Stage) and isinstance(step.effect, Effect)
        assert step.__doc__
    with pytest.raises(dataclasses.FrozenInstanceError):
        AttachMargin(3).classes = 4  # type: ignore[misc]


def test_a_pass_of_another_stage_is_refused() -> None:
    program = captured(lambda: mlp(3, 2), VECTOR).program
    with pytest.raises(ValueError, match="takes"):
        run_pipeline(program, (BoundedDeadCode(),), RegistryTable())
    bounded, _ = run_pipeline(program, (RelaxIBP(("x",)),), RegistryTable())
    with pytest.raises(ValueError, match="takes"):
        run_pipeline(bounded, (DeadCode(),), RegistryTable())


def test_a_pass_that_breaks_a_program_is_named() -> None:
    @dataclasses.dataclass(frozen=True)
    class Breaks(Pass):
        name = "breaks"
        stage = Stage.CONCRETE
        effect = Effect.EXACT

        def run(self, program: Program) -> Program:
            return program.with_nodes(program.nodes[1:])

    program = captured(lambda: mlp(3, 2, 2), VECTOR).program
    with pytest.raises(VerifyError) as caught:
        run_pipeline(program, (DeadCode(), Breaks()), RegistryTable())
    assert "in pass breaks" in str(caught.value.__notes__)


@pytest.mark.parametrize(
    ("spec", "make"),
    [
        (bg.Margin(4), lambda: mlp(3, 3)),
        (bg.Margin(3), lambda: nn.Sequential(*mlp(3, 3), nn.Unflatten(1, (3, 1)))),
        (bg.LinearSpec(torch.ones(1, 4)), lambda: mlp(3, 3)),
    ],
)
def test_specs_that_do_not_fit(spec: Any, make: Callable[[], nn.Module]) -> None:
    with pytest.raises(SpecError):
        bg.compile(make(), bg.LinfBall(torch.zeros(VECTOR), 0.1), spec=spec)


@pytest.mark.parametrize("method", ["ibp", "symbolic", "mix", "crown-ibp", "crown"])
def test_all_unsupported_ops_are_listed(method: str) -> None:
    class Unknown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.logcumsumexp(x, 1)
            return torch.renorm(y, 2, 1, 1.0) + torch.relu(x)

    with pytest.raises(UnsupportedError) as caught:
        bg.compile(Unknown(), bg.LinfBall(torch.zeros(VECTOR), 0.1), method=method)
    text = str(caught.value)
    assert "logcumsumexp" in text and "renorm" in text and __file__.rsplit("/", 1)[-1] in text


@pytest.mark.parametrize("method", ["symbolic", "mix", "crown"])
def test_ops_that_mix_samples_are_refused(method: str) -> None:
    class Mixes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0, keepdim=True)

    region = bg.LinfBall(torch.zeros(4, 3), 0.1)
    with pytest.raises(UnsupportedError):
        bg.compile(Mixes(), region, method=method)


def test_bounded_cleanup() -> None:
    found = captured(Twice, VECTOR)
    steps = (RelaxIBP(("x",)), BoundedCommonSubexpressions(), BoundedDeadCode())
    program, records = run_pipeline(found.program, steps, RegistryTable())
    assert records[1].nodes_after < records[0].nodes_after
    assert records[2].nodes_after <= records[1].nodes_after
    assert program.stage is Stage.BOUNDED


def test_clean_statistics_uses_the_clean_batch() -> None:
    """Bounds enclose the network normalised with the clean batch's mean and variance."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    program = bg.compile(model, bg.LinfBall(x, 0.1), training=True)
    assert program.needs_clean
    subset = x[:2]
    with torch.no_grad():
        found = program.run([Interval(subset - 0.1, subset + 0.1)], clean=[x])
        hidden = model[0](x)
        mean, var = hidden.mean(0), hidden.var(0, unbiased=False)
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            noise = torch.rand(subset.shape, generator=generator, dtype=torch.float64) * 0.2 - 0.1
            at = (model[0](subset + noise) - mean) / (var + model[1].eps).sqrt()
            value = model[3](F.relu(at * model[1].weight + model[1].bias))
            assert (found.lower <= value).all() and (value <= found.upper).all()
    # Compiling and bounding moved no running statistics.
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
