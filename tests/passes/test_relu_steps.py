"""Relu and the layer before it as one step: against the rules apart and automatic gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from relu_forms import network, plain
from torch import Tensor, nn

import boundgraph as bg
from boundgraph import ops
from boundgraph.compiler import compile
from boundgraph.domains import interval_steps, relu_steps
from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm
from boundgraph.domains.relu_steps import step_form
from boundgraph.passes import IntervalSteps, ReluSteps
from boundgraph.training.losses import MixedLoss

# Shapes of the operand and the weight, and a convolution's attributes.
LAYERS = {
    "linear": ((4,), (5, 4), {}),
    "few channels": ((1, 6, 6), (3, 1, 3, 3), {"stride": (2, 2), "padding": (1, 1)}),
    "strided": ((8, 7, 6), (2, 8, 3, 3), {"stride": (2, 2), "padding": (1, 0)}),
    "unreached": ((7, 6, 6), (2, 7, 3, 3), {"stride": (2, 2), "padding": (0, 0)}),
    "spread": ((2, 6, 6), (3, 2, 2, 2), {"dilation": (2, 2)}),
}


def attributes(found: dict[str, object]) -> dict[str, object]:
    return {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)} | found


@pytest.fixture(params=[1, 1 << 20])
def portion(request, monkeypatch):
    """Portions of one row and of all; images in channels-last order, too."""
    monkeypatch.setattr(relu_steps, "_MOST", request.param)
    monkeypatch.setattr(interval_steps, "LARGE", request.param)


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def apart(
    form: LinearForm, pre: Interval, shape: tuple[int, ...], attrs: dict, *parameters: Tensor
) -> LinearForm:
    """The two backward rules one after the other."""
    through = plain(form, pre, None)
    linear = len(shape) == 1
    spec = ops.get("linear" if linear else "conv2d")
    rest = {} if linear else attributes(attrs) | {"groups": 1}
    target = tuple(form.coeff.shape[1:])
    return spec.backward(
        through, *parameters, operand=0, carry=True, target=target,
        shapes=((target[0], *shape), tuple(parameters[0].shape)),
        sample_dims=tuple(range(2, form.coeff.dim())), **rest,
    )  # fmt: skip


@pytest.mark.usefixtures("portion")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("biased", [True, False])
def test_equals_the_rules_apart(name, rows, biased):
    shape, kernel, attrs = LAYERS[name]
    generator = torch.Generator().manual_seed(rows)
    weight, bias = draw(generator, *kernel), draw(generator, kernel[0])
    image = draw(generator, 2, *shape)
    if len(shape) == 1:
        like = torch.nn.functional.linear(image, weight)
    else:
        like = torch.nn.functional.conv2d(image, weight, **attributes(attrs))
    center, radius = torch.randn_like(like), torch.randn_like(like).abs()
    coeff, offset = draw(generator, rows, *like.shape), draw(generator, rows, 2)
    weights = draw(generator, rows, *image.shape), draw(generator, rows, 2)
    found = []
    for by_hand in (True, False):
        given = (coeff, center, radius, offset, weight, *((bias,) if biased else ()))
        leaves = [t.clone().requires_grad_() for t in given]
        form = LinearForm(leaves[0], leaves[3])
        pre = Interval.from_center_radius(leaves[1], leaves[2])
        if by_hand:
            rest = {} if len(shape) == 1 else attributes(attrs) | {"size": shape[1:]}
            new = step_form(form, pre, *leaves[4:], **rest)
        else:
            new = apart(form, pre, shape, attrs, *leaves[4:])
        total = (new.coeff * weights[0]).sum() + (new.offset * weights[1]).sum()
        found.append((new.coeff, new.offset, *torch.autograd.grad(total, leaves)))
    for mine, want in zip(*found, strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("portion")
@pytest.mark.parametrize("features", [(5,), (2, 3), (2, 2, 3)])
def test_without_a_layer(features):
    generator = torch.Generator().manual_seed(0)
    center, radius = draw(generator, 4, *features), draw(generator, 4, *features).abs()
    pre = Interval.from_center_radius(center, radius)
    form = LinearForm(draw(generator, 3, 4, *features))
    found, want = step_form(form, pre), plain(form, pre, None)
    torch.testing.assert_close(found.coeff, want.coeff)
    torch.testing.assert_close(found.offset, want.offset)


def test_lines_hold_for_units_of_every_kind():
    """Dead, active, crossing, of no width at 0 and elsewhere: relu lies above what is returned."""
    ends = torch.tensor(
        [[-2, -1], [1, 3], [-1, 2], [-3, 1], [0, 0], [2, 2], [-2, 0], [0, 2], [-1e-30, 1e30]],
        dtype=torch.float64,
    )
    lower, upper = ends.T.unsqueeze(1)
    for sign in (1.0, -1.0):
        coeff = torch.full((1, 1, len(ends)), sign, dtype=torch.float64)
        new = step_form(LinearForm(coeff), Interval(lower, upper))
        for share in torch.linspace(0, 1, 9, dtype=torch.float64):
            x = lower + share * (upper - lower)
            # A few roundings of products and sums no larger than the interval itself.
            slack = 8 * torch.finfo(torch.float64).eps * torch.maximum(upper.abs(), lower.abs())
            bound = (new.coeff * x).sum(2) + new.offset
            assert bool((bound <= (coeff * x.relu()).sum(2) + slack.sum(1)).all())


def test_a_nan_bound_is_kept():
    nan = torch.tensor([[float("nan"), 1.0]])
    for lower, upper in ((nan, nan.abs() + 1), (nan - 1, nan), (nan, torch.ones(1, 2))):
        new = step_form(LinearForm(torch.ones(1, 1, 2)), Interval(lower, upper))
        assert bool((new.coeff.sum() + new.offset).isnan().all())


def compiled(training: bool) -> bg.BoundProgram:
    region = bg.LinfBall(torch.zeros(2, 1, 4, 4, dtype=torch.float64), 0.1)
    options = {"method": "crown-ibp", "spec": bg.Margin(3), "lower_only": True}
    return compile(network(), region, training=training, **options)


def test_text(golden):
    before, after = compiled(False), compiled(True)
    assert "relu-steps" in [record.name for record in after.records]
    golden("passes/relu_steps.txt", f"# before\n{before.ir}\n# after\n{after.ir}")


class Branches(nn.Module):
    """A form that is read twice after a relu, and a grouped convolution, which stays apart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = torch.relu(self.norm(self.second(y)) + y)
        return self.last(y.flatten(1))


@pytest.mark.usefixtures("portion")
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("make", [network, Branches])
def test_the_same_training_gradients(monkeypatch, make, fused):
    x, y = torch.rand(6, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (6,))
    first, found = make().double(), []
    for with_steps in (True, False):
        if not with_steps:
            for steps in (ReluSteps, IntervalSteps):
                monkeypatch.setattr(steps, "run", lambda self, program: program)
        model = copy.deepcopy(first)
        loss_fn = MixedLoss(model, 0.1, method="crown-ibp", subset=None, fused=fused)
        loss = loss_fn(x, y)
        loss.backward()
        assert ("_step" in str(loss_fn.program.ir)) == with_steps
        found.append([loss, *(p.grad for p in model.parameters())])
    for mine, want in zip(*found, strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-9, atol=1e-12)


def test_a_second_gradient_is_refused():
    coeff = torch.ones(1, 1, 2, requires_grad=True)
    new = step_form(LinearForm(coeff), Interval(-torch.ones(1, 2), torch.ones(1, 2)))
    (grad,) = torch.autograd.grad(new.offset.sum() ** 2, coeff, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_in_one_graph(backend):
    """A compiler puts passes together by itself: the same numbers, no break in the graph."""
    x, y = torch.rand(4, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (4,))
    model = network()
    loss_fn = MixedLoss(model, 0.1, method="crown-ibp", subset=None)
    loss_fn.prepare(x, y)
    compute = torch.compile(loss_fn.compute, backend=backend, fullgraph=True)
    found = []
    for run in (compute, loss_fn.compute):
        loss = run(x, y, None).loss
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for mine, want in zip(*found, strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-9, atol=1e-12)
