"""The backward rule of conv2d for bounds that are run node by node."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.linear_form import LinearForm
from boundgraph.domains.transposed import transposed
from boundgraph.ops import get


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
