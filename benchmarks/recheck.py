"""Certified accuracy of a run's weights by interval arithmetic in plain torch.

Uses nothing of BoundGraph but the reading of the run folder, so that a figure of
`boundgraph evaluate` can be checked against code that shares no rule with it. For the
built-in networks (convolutions, relu, dense layers in a row). In double precision.

    python benchmarks/recheck.py runs/mnist
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from boundgraph.cli._subject import load_subject


def margins(model: nn.Sequential, low: Tensor, high: Tensor, y: Tensor) -> Tensor:
    """Lower bounds of `f_y - f_j` `[batch, classes]` for inputs between `low` and `high`."""
    *layers, last = model
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            middle, half = layer((low + high) / 2), (high - low) / 2
            weights = {"weight": layer.weight.abs(), "bias": torch.zeros_like(layer.bias)}
            half = torch.func.functional_call(layer, weights, (half,))
            low, high = middle - half, middle + half
        else:
            low, high = layer(low), layer(high)
    rows = last.weight[y, None] - last.weight
    offsets = last.bias[y, None] - last.bias
    middle, half = (low + high)[:, :, None] / 2, (high - low)[:, :, None] / 2
    return (rows @ middle - rows.abs() @ half)[:, :, 0] + offsets


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="run folder")
    parser.add_argument("--eps", type=float, default=None, help="default: the run's")
    options = parser.parse_args()
    subject = load_subject(options.run, None, None)
    model = subject.model.double()
    assert isinstance(model, nn.Sequential) and subject.config is not None
    eps = options.eps if options.eps is not None else subject.config["train"]["eps"]
    x, y = subject.data.x_test.double(), subject.data.y_test
    clean = proved = 0
    for images, labels in zip(x.split(500), y.split(500), strict=True):
        low, high = (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)
        others = margins(model, low, high, labels).scatter(1, labels[:, None], torch.inf)
        clean += int((model(images).argmax(1) == labels).sum())
        proved += int((others > 0).all(1).sum())
    print(f"eps {eps:g}: clean {clean} of {len(y)}, certified by plain intervals {proved}")


if __name__ == "__main__":
    main()
