"""Certified accuracy of a run's weights by ibp or crown-ibp written in plain torch.

Uses nothing of BoundGraph but the reading of the run folder, so that a figure of
`boundgraph evaluate` can be checked against code that shares no rule with it. For the
built-in networks (convolutions, relu, dense layers in a row). In double precision.

    python benchmarks/recheck.py runs/mnist --method crown-ibp
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boundgraph.cli._subject import load_subject

Ends = tuple[Tensor, Tensor]


def ibp(layer: nn.Module, low: Tensor, high: Tensor) -> Ends:
    """The interval after one layer."""
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return layer(low), layer(high)
    middle = layer((low + high) / 2)
    weights = {"weight": layer.weight.abs(), "bias": torch.zeros_like(layer.bias)}
    half = torch.func.functional_call(layer, weights, ((high - low) / 2,))
    return middle - half, middle + half


def back(layer: nn.Module, rows: Tensor, low: Tensor, high: Tensor) -> Ends:
    """Rows `[batch, rows, ...]` over a layer's output as rows over its input, and an offset.

    `low` and `high` enclose the layer's input.
    """
    count, flat = rows.shape[:2], rows.flatten(0, 1)
    if isinstance(layer, nn.Linear):
        return rows @ layer.weight, rows @ layer.bias
    if isinstance(layer, nn.Conv2d):
        moved = F.conv_transpose2d(flat, layer.weight, None, layer.stride, layer.padding)
        assert moved.shape[1:] == low.shape[1:]
        return moved.unflatten(0, count), rows.sum((3, 4)) @ layer.bias
    if isinstance(layer, nn.Flatten):
        return rows.unflatten(2, low.shape[1:]), torch.zeros(count, dtype=rows.dtype)
    below, above = low.clamp(max=0), high.clamp(min=0)
    chord = above / (above - below).clamp(min=1e-300)
    under = torch.where(high <= 0, 0.0, torch.where(low >= 0, 1.0, (high > -low).to(low.dtype)))
    gap = (-chord * below)[:, None]
    positive, negative = rows.clamp(min=0), rows.clamp(max=0)
    offset = (negative * gap).flatten(2).sum(2)
    return positive * under[:, None] + negative * chord[:, None], offset


def margins(model: nn.Sequential, low: Tensor, high: Tensor, y: Tensor, crown: bool) -> Tensor:
    """Lower bounds of `f_y - f_j` `[batch, classes]` for inputs between `low` and `high`."""
    *layers, last = model
    boxes = [(low, high)]
    for layer in layers:
        boxes.append(ibp(layer, *boxes[-1]))
    rows = last.weight[y, None] - last.weight
    total = last.bias[y, None] - last.bias
    walked = list(zip(layers, boxes, strict=False))[::-1] if crown else []
    for layer, box in walked:
        rows, offset = back(layer, rows, *box)
        total = total + offset
    low, high = boxes[0] if crown else boxes[-1]
    rows = rows.flatten(2)
    middle, half = ((low + high) / 2).flatten(1), ((high - low) / 2).flatten(1)
    return total + (rows @ middle[:, :, None] - rows.abs() @ half[:, :, None])[:, :, 0]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="run folder")
    parser.add_argument("--method", default="ibp", choices=("ibp", "crown-ibp"))
    parser.add_argument("--eps", type=float, default=None, help="default: the run's")
    options = parser.parse_args()
    subject = load_subject(options.run, None, None)
    model = subject.model.double()
    assert isinstance(model, nn.Sequential) and subject.config is not None
    eps = options.eps if options.eps is not None else subject.config["train"]["eps"]
    x, y = subject.data.x_test.double(), subject.data.y_test
    clean = proved = 0
    for images, labels in zip(x.split(250), y.split(250), strict=True):
        low, high = (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)
        found = margins(model, low, high, labels, options.method == "crown-ibp")
        others = found.scatter(1, labels[:, None], torch.inf)
        clean += int((model(images).argmax(1) == labels).sum())
        proved += int((others > 0).all(1).sum())
    print(f"eps {eps:g}: clean {clean} of {len(y)}, certified by {options.method} {proved}")


if __name__ == "__main__":
    main()
