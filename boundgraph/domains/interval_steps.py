"""An interval through a layer and through relu with gradients of their own, on a CPU.

What automatic differentiation makes of centre and radius keeps |W| and four more tensors of a
value's size for each layer, and passes over them twenty times. A step keeps the two that the
weight's gradient needs, makes |W| again where it is read, and puts images into channels-last
order: of what was measured only convolutions of one channel are not quicker in it, those of
three and strided ones take a quarter to a half of the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.autograd.function import once_differentiable

from boundgraph.domains.interval import Interval

# Elements of |W| that are made at a time.
_PART = 1 << 20
# Elements of a sample from which steps and orders of memory pay; smaller ones lose by calls.
LARGE = 1 << 12
_Convolution = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def channels_last(image: Tensor) -> Tensor:
    """Large `[..., channels, height, width]` in that order of memory; others as they are."""
    small = image.dim() < 4 or image.shape[-3] == 1 or math.prod(image.shape[-3:]) < LARGE
    if small or image.device.type != "cpu":
        return image
    flat = image.flatten(0, -4).contiguous(memory_format=torch.channels_last)
    return flat.unflatten(0, image.shape[:-3]) if image.dim() > 4 else flat


def _parts(weight: Tensor) -> Iterator[slice]:
    step = max(1, _PART // max(1, weight[0].numel()))
    for start in range(0, len(weight), step):
        yield slice(start, start + step)


def _linear(
    center: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    reach = radius.new_empty(len(radius), len(weight))
    for part in _parts(weight):
        reach[:, part] = F.linear(radius, weight[part].abs())
    return F.linear(center, weight, bias), reach


def _convolved(
    center: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None, how: _Convolution
) -> tuple[Tensor, Tensor]:
    middle = torch.conv2d(center, weight, bias, *how)
    return middle, torch.conv2d(radius, weight.abs(), None, *how)


def _linear_gradients(
    grads: tuple[Tensor, Tensor], saved: tuple[Tensor, ...], wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    of_center, of_radius = grads
    center, radius, weight = saved
    found: list[Tensor | None] = [None] * 4
    if wanted[0]:
        found[0] = of_center @ weight
    if wanted[1]:
        found[1] = torch.zeros_like(radius)
    if wanted[2]:
        found[2] = of_center.T @ center
    for part in _parts(weight):
        reach = of_radius[:, part]
        if found[1] is not None:
            found[1].addmm_(reach, weight[part].abs())
        if found[2] is not None:
            found[2][part].addcmul_(reach.T @ radius, weight[part].sgn())
    if wanted[3]:
        found[3] = of_center.sum(0)
    return found


def _conv_gradients(
    grads: tuple[Tensor, Tensor],
    saved: tuple[Tensor, ...],
    wanted: tuple[bool, ...],
    convolution: _Convolution,
) -> list[Tensor | None]:
    of_center, of_radius = (_ordered(grad, saved[0]) for grad in grads)
    center, radius, weight = saved

    def gradients(grad: Tensor, image: Tensor, kernel: Tensor, mask: tuple[bool, ...]) -> Any:
        sizes = [len(kernel)] if mask[2] else None
        return torch.ops.aten.convolution_backward(
            grad, image, kernel, sizes, *convolution, False, (0, 0), 1, mask
        )

    first, of_weight, of_bias = gradients(
        of_center, center, weight, (wanted[0], wanted[2], wanted[3])
    )
    second, more, _ = gradients(of_radius, radius, weight.abs(), (wanted[1], wanted[2], False))
    if wanted[2]:
        of_weight = of_weight.addcmul_(more, weight.sgn())
    return [first, second, of_weight, of_bias]


def _ordered(grad: Tensor, image: Tensor) -> Tensor:
    return grad.contiguous() if image.shape[1] == 1 else channels_last(grad)


class _LayerStep(torch.autograd.Function):
    """Centre and radius of a layer's result, or its ends."""

    @staticmethod
    def forward(
        center: Tensor,
        radius: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        convolution: _Convolution | None,
        ends: bool,
    ) -> tuple[Tensor, Tensor]:
        if convolution is None:
            middle, reach = _linear(center, radius, weight, bias)
        else:
            middle, reach = _convolved(center, radius, weight, bias, convolution)
        if not ends:
            return middle, reach
        upper = middle + reach
        return middle.sub_(reach), upper

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        center, radius, weight, _, ctx.convolution, ctx.ends = inputs
        ctx.save_for_backward(center, radius, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, first: Tensor, second: Tensor) -> tuple[Any, ...]:
        grads = (first + second, second - first) if ctx.ends else (first, second)
        wanted = ctx.needs_input_grad[:4]
        if ctx.convolution is None:
            found = _linear_gradients(grads, ctx.saved_tensors, wanted)
        else:
            found = _conv_gradients(grads, ctx.saved_tensors, wanted, ctx.convolution)
        return (*found, None, None)


class _ReluEnds(torch.autograd.Function):
    """Centre and radius of relu, from ends."""

    @staticmethod
    def forward(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        low, high = lower.clamp(min=0.0).mul_(0.5), upper.clamp(min=0.0).mul_(0.5)
        return low + high, high.sub_(low)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_center: Tensor, of_radius: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = ctx.saved_tensors
        half = of_center * 0.5
        of_lower = torch.sub(half, of_radius, alpha=0.5)
        of_upper = half.add_(of_radius, alpha=0.5)
        return (
            torch.ops.aten.threshold_backward(of_lower, lower, 0.0),
            torch.ops.aten.threshold_backward(of_upper, upper, 0.0),
        )


def layer_step(
    center: Tensor,
    radius: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    convolution: _Convolution | None,
    ends: bool,
) -> tuple[Tensor, Tensor]:
    """An interval through a linear layer or a convolution. Gradients can be taken once.

    Args:
        center, radius: `[batch, inputs]`, or `[batch, channels, height, width]`.
        weight, bias: of the layer; the bias may be None.
        convolution: stride, padding and dilation; None for a linear layer.
        ends: lower and upper ends are wanted.

    Returns:
        Centre and radius of the result; its ends where `ends`.
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(center.device.type):
        if convolution is None:
            middle, reach = F.linear(center, weight, bias), F.linear(radius, weight.abs())
        else:
            middle, reach = _convolved(center, radius, weight, bias, convolution)
        return (middle - reach, middle + reach) if ends else (middle, reach)
    if convolution is not None:
        center, radius = channels_last(center), channels_last(radius)
    found: tuple[Tensor, Tensor] = _LayerStep.apply(  # type: ignore[no-untyped-call]
        center, radius, weight, bias, convolution, ends
    )
    return found


def relu_ends(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and radius of relu over `[lower, upper]`. Gradients can be taken once."""
    if torch.compiler.is_compiling():
        low, high = torch.relu(lower), torch.relu(upper)
        return low * 0.5 + high * 0.5, high * 0.5 - low * 0.5
    found: tuple[Tensor, Tensor] = _ReluEnds.apply(lower, upper)  # type: ignore[no-untyped-call]
    return found


def _recorded(function: Any, operands: tuple[Any, ...]) -> Any:
    """A call, on proxies recorded as one: its gradient is not what its body would give."""
    first = operands[0]
    if isinstance(first, fx.Proxy):
        return first.tracer.create_proxy("call_function", function, operands, {})
    return function(*operands)


def layer_interval(
    x: Interval, weight: Tensor, *bias: Tensor, ends: bool, features: Any, **attrs: Any
) -> Interval:
    """`interval.linear` or `interval.conv2d` through `layer_step`."""
    names = ("stride", "padding", "dilation")
    convolution = tuple(tuple(attrs[name]) for name in names) if attrs else None
    offset = bias[0] if bias else None
    found = _recorded(layer_step, (x.center, x.radius, weight, offset, convolution, ends))
    first, second = found[0], found[1]
    return Interval(first, second) if ends else Interval.from_center_radius(first, second)


def relu_interval(x: Interval) -> Interval:
    """`interval.relu` through `relu_ends`."""
    found = _recorded(relu_ends, (x.lower, x.upper))
    return Interval.from_center_radius(found[0], found[1])


def sum_interval(a: Interval, b: Interval) -> Interval:
    """`interval.add` of centres and radii, which layers give and take."""
    return Interval.from_center_radius(a.center + b.center, a.radius + b.radius)
