"""Poles, overflow, NaN, signed zeros, saturation: where rules go wrong quietly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from boundgraph.domains import Interval
from boundgraph.ops import OpSpec, all_ops, get
from boundgraph.testing import draw_case, excess, relaxed_lines, sample_point, unit_roundoff


def op(name: str) -> OpSpec:
    spec = get(name)
    assert spec is not None
    return spec


@pytest.mark.parametrize("spec", [s for s in all_ops() if s.interval], ids=lambda s: s.name)
def test_nan_is_never_dropped(spec: OpSpec) -> None:
    """A NaN in the operand gives NaN or an unbounded end, never a finite claim."""
    import random

    assert spec.interval is not None
    drawn = draw_case(spec, random.Random(1))
    poisoned = [
        Interval(torch.full_like(v.lower, math.nan), torch.full_like(v.upper, math.nan))
        if isinstance(v, Interval)
        else v
        for v in drawn.operands
    ]
    found = spec.interval(*poisoned, **drawn.attrs)
    clean = spec.interval(*drawn.operands, **drawn.attrs)
    # Elements that depend on no bounded operand (padding, constants, a label's own row) stay.
    unbounded = found.lower.isnan() | found.upper.isnan() | found.upper.isinf()
    same = (found.lower == clean.lower) & (found.upper == clean.upper)
    assert (unbounded | same).all()
    assert unbounded.any()


@pytest.mark.parametrize("name", ["relu", "leaky_relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rectifier_lines_hold_up_to_overflow(name: str, dtype: torch.dtype) -> None:
    attrs = {"negative_slope": 0.01} if name == "leaky_relu" else {}
    big, small = torch.finfo(dtype).max, 1e-8
    ends = [(-big, big), (-big, small), (-small, big), (-big / 2, big / 2), (0.0, 0.0)]
    ends += [(-0.0, 3.0), (-3.0, 0.0), (-1e-30, 1e30), (0.0, big), (-big, -small), (-1e-300, 1.0)]
    lower = torch.tensor([low for low, _ in ends], dtype=dtype)
    upper = torch.tensor([high for _, high in ends], dtype=dtype)
    slope, middle, gap = relaxed_lines(op(name), Interval(lower, upper), attrs)
    scale = 2.0**-10  # the lines are judged a thousand times smaller, so that float64 holds them
    for x in (lower, upper, lower * 0.5 + upper * 0.5, torch.zeros_like(lower)):
        x = torch.minimum(torch.maximum(x, lower), upper)
        value = op(name).concrete(x.double() * scale, **attrs)
        line = slope.double() * (x.double() * scale) + middle.double() * scale
        found = Interval(line - gap.double() * scale, line + gap.double() * scale)
        size = value.abs() + line.abs() + gap.double() * scale
        assert not (excess(value, found, 16 * unit_roundoff(dtype) * size) > 0).any()


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "sigmoid", "tanh"])
def test_infinite_ends_are_not_finite_lines(name: str) -> None:
    attrs = {"negative_slope": 0.01} if name == "leaky_relu" else {}
    inf = math.inf
    pre = Interval(torch.tensor([-inf, -1.0, -inf]), torch.tensor([1.0, inf, inf]))
    slope, middle, gap = relaxed_lines(op(name), pre, attrs)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        x = torch.randn(3, generator=generator) * 100
        x = torch.minimum(torch.maximum(x, pre.lower), pre.upper)
        low, high = slope * x + middle - gap, slope * x + middle + gap
        value = op(name).concrete(x, **attrs)
        holds = (low <= value + 1.2e-5) & (value <= high + 1.2e-5)
        assert (holds | low.isnan() | high.isnan()).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e2, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_over_a_wide_range(scale: float, dtype: torch.dtype) -> None:
    """Errors stay a few ulps of the odds' exponent, whatever is added to all entries."""
    generator = torch.Generator().manual_seed(0)
    u, tiny = unit_roundoff(dtype), torch.finfo(dtype).tiny
    for index in range(60):
        n = 1 + index % 6
        shift = 0.0 if index % 2 else 1e4
        center = (torch.rand(4, n, generator=generator, dtype=dtype) * 2 - 1) * scale + shift
        width = torch.rand(4, n, generator=generator, dtype=dtype) * (0.0, 1e-6, scale)[index % 3]
        box = Interval(center - width, center + width)
        point = sample_point(box, generator, corner=index % 4 == 0)
        exact = point.double().softmax(1)
        found = op("softmax").interval(box, dim=1)  # type: ignore[misc]
        spread = (box.upper.amax(1, keepdim=True) - box.lower.amin(1, keepdim=True)).double()
        # e^s for s rounded at the size of the spread, but not smaller than the dtype reaches.
        exponent = 8 + 2 * n + 2 * spread.clamp(max=-math.log(tiny))
        allowed = 4 * u * exponent * exact + 4 * tiny
        assert not (excess(exact, found, allowed) > 0).any()
        assert (found.lower >= 0).all() and (found.upper <= 1).all()
        logs = op("log_softmax").interval(box, dim=1)  # type: ignore[misc]
        reference = point.double().log_softmax(1)
        size = spread + n + 1
        assert not (excess(reference, logs, 8 * u * (size + reference.abs())) > 0).any()


def test_softmax_of_one_entry_is_one() -> None:
    x = torch.tensor([[3.0], [-1e4]])
    found = op("softmax").interval(Interval(x - 1, x + 1), dim=1)  # type: ignore[misc]
    assert torch.equal(found.lower, torch.ones(2, 1)) and torch.equal(found.upper, torch.ones(2, 1))


def test_softmax_gradients_are_finite() -> None:
    for name in ("softmax", "log_softmax"):
        for shape in ((2, 1), (2, 3)):
            lower = torch.zeros(shape, requires_grad=True)
            upper = torch.ones(shape, requires_grad=True)
            found = op(name).interval(Interval(lower, upper), dim=1)  # type: ignore[misc]
            grads = torch.autograd.grad((found.upper - found.lower).sum(), (lower, upper))
            assert all(torch.isfinite(grad).all() for grad in grads), (name, shape)


def test_reciprocal_at_its_pole() -> None:
    rule = op("reciprocal").interval
    lower = torch.tensor([-1.0, 0.0, -0.0, -1.0, 1e-45, 2.0, -4.0, -0.0])
    upper = torch.tensor([1.0, 1.0, 1.0, -0.0, 1.0, 4.0, -2.0, 0.0])
    found = rule(Interval(lower, upper))  # type: ignore[misc]
    assert found.lower[:4].tolist() == [-math.inf] * 4
    assert found.upper[:4].tolist() == [math.inf] * 4
    assert found.upper[4] == math.inf and found.lower[4] == 1.0
    assert (found.lower[5], found.upper[5]) == (0.25, 0.5)
    assert (found.lower[6], found.upper[6]) == (-0.5, -0.25)
    assert (found.lower[7], found.upper[7]) == (-math.inf, math.inf)


def test_reciprocal_gradient_at_its_pole_is_finite() -> None:
    lower = torch.tensor([-1.0, 1.0], requires_grad=True)
    found = op("reciprocal").interval(Interval(lower, lower + 2.0))  # type: ignore[misc]
    (grad,) = torch.autograd.grad(found.upper[1] + found.lower[1], lower)
    assert torch.isfinite(grad).all()


def test_exp_that_overflows_has_a_finite_lower_end() -> None:
    found = op("exp").interval(Interval(torch.tensor([100.0]), torch.tensor([200.0])))  # type: ignore[misc]
    assert torch.isfinite(found.lower).all() and found.upper.item() == math.inf


CONVS = [
    {"padding": "same", "stride": (1, 1), "dilation": (2, 1), "groups": 1},
    {"padding": "valid", "stride": (2, 1), "dilation": (1, 1), "groups": 1},
    {"padding": (2, 0), "stride": (1, 2), "dilation": (1, 2), "groups": 2},
]


@pytest.mark.parametrize("attrs", CONVS, ids=["same", "valid", "groups"])
def test_convolution_spellings(attrs: dict[str, object]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 2 // attrs["groups"], 3, 3, dtype=torch.float64)  # type: ignore[operator]
    center = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    box = Interval(center - 0.5, center + 0.5)
    found = op("conv2d").interval(box, weight, **attrs)  # type: ignore[misc]
    # The corner that the sign of the kernel picks is reached: the rule is exact.
    unfolded = op("conv2d").concrete(torch.full_like(center, 0.5), weight.abs(), **attrs)
    middle = op("conv2d").concrete(center, weight, **attrs)
    assert torch.allclose(found.upper, middle + unfolded, rtol=1e-13, atol=1e-13)
    assert torch.allclose(found.lower, middle - unfolded, rtol=1e-13, atol=1e-13)


def windows(x: Tensor, kernel: int, stride: int, padding: int, ceil: bool) -> Tensor:
    """Max pooling by hand, one window at a time."""
    n = x.shape[-1]
    count = (n + 2 * padding - kernel) / stride
    out = (math.ceil(count) if ceil else math.floor(count)) + 1
    if ceil and (out - 1) * stride >= n + padding:
        out -= 1
    starts = [i * stride - padding for i in range(out)]
    parts = [x[..., max(s, 0) : min(s + kernel, n)].amax(-1) for s in starts]
    return torch.stack(parts, -1)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(2, 2, 1), (3, 2, 1), (3, 3, 0), (2, 1, 0)]
)
def test_max_pool_by_hand(kernel: int, stride: int, padding: int, ceil: bool) -> None:
    torch.manual_seed(0)
    lower = torch.randn(2, 1, 6) - 5.0  # far below 0: padding with zeros would show
    box = Interval(lower, lower + torch.rand_like(lower))
    attrs = {"kernel_size": (kernel,), "stride": (stride,), "padding": (padding,)}
    found = op("max_pool1d").interval(box, dilation=(1,), ceil_mode=ceil, **attrs)  # type: ignore[misc]
    assert torch.equal(found.lower, windows(box.lower, kernel, stride, padding, ceil))
    assert torch.equal(found.upper, windows(box.upper, kernel, stride, padding, ceil))
