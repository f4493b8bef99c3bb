"""x·Wᵀ and r·|W|ᵀ with the relu on the bounds, as one op with a kernel of its own.

On a CUDA device a float32 call is one Triton kernel forward and two backward; |W| is never
written. On a CPU, and in other dtypes, it is plain torch.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.library.custom_op("boundgraph::interval_linear", mutates_args=())
def interval_linear(
    center: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor]:
    """An interval through a linear layer, and through relu where asked for.

    Args:
        center, radius: `[batch, inputs]`.
        weight: `[outputs, inputs]`.
        bias: `[outputs]` or None.
        relu: whether relu follows.

    Returns:
        Centre and radius `[batch, outputs]`; lower and upper ends where `relu`.
    """
    if _has_kernel(center):
        from boundgraph.domains import _interval_kernels

        return _interval_kernels.forward(center, radius, weight, bias, relu)  # type: ignore
    middle, reach = F.linear(center, weight, bias), F.linear(radius, weight.abs())
    if not relu:
        return middle, reach
    return torch.relu(middle - reach), torch.relu(middle + reach)


@interval_linear.register_fake
def _(
    center: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor]:
    first = center.new_empty(center.shape[0], weight.shape[0])
    return first, torch.empty_like(first)


@torch.library.custom_op("boundgraph::interval_linear_backward", mutates_args=())
def interval_linear_backward(
    g1: Tensor,
    g2: Tensor,
    first: Tensor,
    second: Tensor,
    center: Tensor,
    radius: Tensor,
    weight: Tensor,
    has_bias: bool,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of centre, radius, weight and bias from those of both results."""
    if _has_kernel(center):
        from boundgraph.domains import _interval_kernels

        return _interval_kernels.backward(  # type: ignore
            g1, g2, first, second, center, radius, weight, has_bias, relu
        )
    if relu:
        low, high = torch.where(first > 0, g1, 0.0), torch.where(second > 0, g2, 0.0)
        g1, g2 = low + high, high - low
    of_weight = g1.t() @ center + weight.sign() * (g2.t() @ radius)
    of_bias = g1.sum(0) if has_bias else g1.new_zeros(g1.shape[1])
    return g1 @ weight, g2 @ weight.abs(), of_weight, of_bias


@interval_linear_backward.register_fake
def _(
    g1: Tensor,
    g2: Tensor,
    first: Tensor,
    second: Tensor,
    center: Tensor,
    radius: Tensor,
    weight: Tensor,
    has_bias: bool,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shapes = (center.shape, center.shape, weight.shape, weight.shape[:1])
    a, b, c, d = (center.new_empty(shape) for shape in shapes)
    return a, b, c, d


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    center, radius, weight, bias, relu = inputs
    ctx.save_for_backward(center, radius, weight, *output)
    ctx.relu, ctx.has_bias = relu, bias is not None


def _differentiate(ctx: Any, g1: Tensor, g2: Tensor) -> tuple[Tensor | None, ...]:
    center, radius, weight, first, second = ctx.saved_tensors
    found = interval_linear_backward(
        g1, g2, first, second, center, radius, weight, ctx.has_bias, ctx.relu
    )
    return (*found[:3], found[3] if ctx.has_bias else None, None)


interval_linear.register_autograd(_differentiate, setup_context=_keep)


# As a graph calls it.
INTERVAL_LINEAR = torch.ops.boundgraph.interval_linear.default


def _has_kernel(x: Tensor) -> bool:
    return x.device.type == "cuda" and x.dtype == torch.float32 and _has_triton()


@functools.lru_cache(maxsize=1)
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
