"""What one op for attention is worth on torchvision's vit_b_16, against a softmax and a product.

    python benchmarks/attention.py

Random weights, ten outputs, one random image of 64 × 64, float64. The first blocks only: after all
twelve both are the widest that the last normalisation allows. Mean widths of the logits.
"""

from __future__ import annotations

from unittest import mock

import torch
import torchvision

import boundgraph as bg
from boundgraph.passes import FuseAttention

METHODS, RADII, BLOCKS = ("ibp", "crown-ibp"), (1e-9, 1e-8), (1, 2)
SIZE = 64


def width(model: torch.nn.Module, region: bg.LinfBall, method: str) -> float:
    with torch.no_grad():
        return float(bg.compile(model, region, method=method)(region).width.mean())


def main() -> None:
    print("| blocks | method | ε | softmax and product | one op | ratio |")
    print("|---|---|---|---|---|---|")
    for blocks in BLOCKS:
        torch.manual_seed(0)
        model = torchvision.models.vit_b_16(image_size=SIZE, num_classes=10).double().eval()
        model.encoder.layers = model.encoder.layers[:blocks]
        # torchvision starts its last layer at zero.
        torch.nn.init.normal_(model.heads.head.weight, std=0.03)
        x = torch.rand(1, 3, SIZE, SIZE, dtype=torch.float64)
        for method in METHODS:
            for eps in RADII:
                region = bg.LinfBall(x, eps=eps, clip=(0.0, 1.0))
                after = width(model, region, method)
                with mock.patch.object(FuseAttention, "run", lambda self, program: program):
                    before = width(model, region, method)
                cells = f"{before:.3g} | {after:.3g} | {before / after:.2f}"
                print(f"| {blocks} | {method} | {eps:g} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
