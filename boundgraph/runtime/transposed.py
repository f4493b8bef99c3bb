"""Transposed convolutions of coefficients, by whichever way is quickest on a CPU.

Bounds that are run node by node (not traced and compiled) may choose by shape. Measured on
one thread: where few channels remain, a product and a sum over windows takes half of the
time of a transposed convolution; with a stride, one with channels last takes half.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.domains.linear_form import LinearForm
from boundgraph.ops import get

# Entries of a kernel, over all channels that remain, up to which windows are added up.
_FEW = 48


def conv2d_backward(
    form: LinearForm, weight: Tensor, *bias: Tensor, carry: bool, **attrs: Any
) -> LinearForm:
    """What the backward rule of `conv2d` computes."""
    spec = get("conv2d")
    assert spec is not None and spec.backward is not None
    # Samples on dimension 1, as they are where a batch has a dimension of its own.
    plain = attrs["groups"] == 1 and attrs["sample_dims"] == (2, 3, 4)
    if not plain or form.coeff.device.type != "cpu":
        found: LinearForm = spec.backward(form, weight, *bias, carry=carry, **attrs)
        return found
    coeff = transposed(
        form.coeff.flatten(0, 1),
        weight,
        tuple(attrs["shapes"][0][2:]),
        stride=attrs["stride"],
        padding=attrs["padding"],
        dilation=attrs["dilation"],
    ).unflatten(0, form.coeff.shape[:2])
    if not carry:
        return LinearForm(coeff)
    term = torch.matmul(form.coeff.sum((3, 4)), bias[0]) if bias else None
    return LinearForm(coeff, form.shifted(term))


def transposed(
    coeff: Tensor,
    weight: Tensor,
    size: tuple[int, ...],
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """The transpose of `conv2d` without groups: `[n, outputs, …]` to `[n, inputs, *size]`."""
    kernel = tuple(weight.shape[2:])
    if math.prod(weight.shape[1:]) <= _FEW and coeff.device.type == "cpu":
        columns = torch.matmul(weight.flatten(1).T, coeff.flatten(2))
        return F.fold(columns, size, kernel, dilation, padding, stride)
    missed = [
        whole - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
        for whole, out, s, p, d, k in zip(
            size, coeff.shape[2:], stride, padding, dilation, kernel, strict=True
        )
    ]
    strided = max(stride) > 1 and coeff.device.type == "cpu"
    if strided:
        coeff = coeff.contiguous(memory_format=torch.channels_last)
    found = F.conv_transpose2d(
        coeff, weight, None, stride, padding, (missed[0], missed[1]), 1, dilation
    )
    # What follows reads it beside values in the usual order.
    return found.contiguous() if strided else found
