"""A small network, and forms through relu by the ordinary rule."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm
from boundgraph.relaxations.relu import relu_lines


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3),
    ).double()  # fmt: skip


def plain(form: LinearForm, pre: Interval, bias: Tensor | None) -> LinearForm:
    dims = tuple(range(2, form.coeff.dim()))
    found = form.through(relu_lines(pre), dims)
    if bias is None:
        return found
    wide = bias.reshape(-1, *(1,) * (len(dims) - 1))
    return LinearForm(found.coeff, found.shifted((found.coeff * wide).sum(dims)))
