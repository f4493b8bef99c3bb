"""Transposed convolutions of coefficients, by whichever way is quickest on a CPU.

For what runs call by call (not traced and compiled), where the way may be chosen by shape.
Measured on one thread: where few channels remain, a product and a sum over windows takes half
to a quarter of the time of a transposed convolution; with a stride, one with channels last
takes half.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Entries of a kernel, over all channels that remain, up to which windows are added up.
_FEW = 48


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
        image = coeff
        if image.is_contiguous(memory_format=torch.channels_last):
            columns = image.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2)
        else:
            columns = image.flatten(2)
        columns = torch.matmul(weight.flatten(1).T, columns)
        return F.fold(columns, size, kernel, dilation, padding, stride)
    missed = [
        whole - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
        for whole, out, s, p, d, k in zip(
            size, coeff.shape[2:], stride, padding, dilation, kernel, strict=True
        )
    ]
    ordered = coeff.is_contiguous(memory_format=torch.channels_last)
    strided = max(stride) > 1 and coeff.device.type == "cpu" and not ordered
    if strided:
        coeff = coeff.contiguous(memory_format=torch.channels_last)
    found = F.conv_transpose2d(
        coeff, weight, None, stride, padding, (missed[0], missed[1]), 1, dilation
    )
    # What follows reads it beside values in the usual order.
    return found.contiguous() if strided else found
