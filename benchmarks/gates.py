"""What the rules for gates are worth: recurrent networks, with them and product by product.

    python benchmarks/gates.py

Product by product, each product takes one fixed plane of McCormick on each side and a mixture is
n + z·(h − n). Networks are random; "wide" ones have three times the weights of torch's
initialisation. Widths are means over ten outputs and four samples, five steps of eight numbers,
16 units.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.domains.interval import Interval
from boundgraph.ops import arithmetic, recurrent
from boundgraph.passes import FuseGates
from boundgraph.relaxations.bilinear import Plane

METHODS = ("ibp", "crown-ibp", "crown")


class Last(nn.Module):
    """A layer on the last step of a recurrent one."""

    def __init__(self, layer: nn.RNNBase, factor: float) -> None:
        super().__init__()
        self.layer, self.last = layer, nn.Linear(layer.hidden_size, 10)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x)[0][:, -1])


def _fixed(x: Interval, y: Interval, *, upper: bool, parallel: bool = False) -> Plane:
    end = x.upper if upper else x.lower
    return Plane(y.lower, end, -(end * y.lower))


def _moved(b: object, start: object, end: object, weight: object) -> object:
    gap = b.emit("sub", *b.broadcast(end, start))
    return b.emit("add", *b.broadcast(start, b.emit("mul", *b.broadcast(weight, gap))))


@contextmanager
def product_by_product() -> Iterator[None]:
    with (
        mock.patch.object(arithmetic, "_plane", _fixed),
        mock.patch.object(recurrent, "blend", _moved),
        mock.patch.object(FuseGates, "run", lambda self, program: program),
    ):
        yield


def widths(model: nn.Module, region: bg.LinfBall) -> list[float]:
    with torch.no_grad():
        return [
            float(bg.compile(model, region, method=method)(region).width.mean())
            for method in METHODS
        ]


def main() -> None:
    print("| network | ε | " + " | ".join(f"{m} before | after" for m in METHODS) + " |")
    print("|---" * (2 + 2 * len(METHODS)) + "|")
    for kind in (nn.LSTM, nn.GRU):
        for factor in (1.0, 3.0):
            torch.manual_seed(0)
            model = Last(kind(8, 16, batch_first=True), factor).eval()
            x = torch.randn(4, 5, 8)
            for eps in (0.02, 0.1, 0.5):
                region = bg.LinfBall(x, eps=eps)
                after = widths(model, region)
                with product_by_product():
                    before = widths(model, region)
                cells = " | ".join(f"{b:.3g} | {a:.3g}" for b, a in zip(before, after, strict=True))
                name = kind.__name__ + (", wide" if factor > 1 else "")
                print(f"| {name} | {eps:g} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
