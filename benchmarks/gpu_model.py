"""What training steps become on a GPU, worked out without one.

Counts launches, bytes and arithmetic of the CUDA code that torch generates for forward and
backward, and models the time. Nothing is timed and no GPU is used.

    python benchmarks/gpu_model.py
    python benchmarks/gpu_model.py --network small --step ibp --subset 16 --kernels --resources
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from boundgraph.gpu import GpuReport, report_loss
from boundgraph.gpu.report import DISCLAIMER
from boundgraph.training._cuda_options import cuda_options
from boundgraph.training.losses import MixedLoss, TrainingLoss
from boundgraph.training.networks import make_network


class _Block(nn.Module):
    """A residual block of two 3×3 convolutions with batch normalisation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.skip(x))


def resnet() -> nn.Sequential:
    """A CIFAR ResNet: three blocks of 16, 32 and 64 channels, and a hidden layer of 100."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(),
        _Block(16, 16, 1), _Block(16, 32, 2), _Block(32, 64, 2),
        nn.Flatten(), nn.Linear(64 * 8 * 8, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def cnn7(width: int = 64) -> nn.Sequential:
    """CNN7 with batch normalisation (Shi et al., arXiv 2103.17268) for 32×32 colour images."""
    layers: list[nn.Module] = []
    plan = ((3, 1, 1), (1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 2, 1))
    for position, (inputs, outputs, stride) in enumerate(plan):
        channels = inputs if position == 0 else inputs * width
        layers += [nn.Conv2d(channels, outputs * width, 3, stride, 1)]
        layers += [nn.BatchNorm2d(outputs * width), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(2 * width * 16 * 16, 512), nn.BatchNorm1d(512), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "small": (lambda: make_network("small", (1, 28, 28), 10), (1, 28, 28)),
    "resnet": (resnet, (3, 32, 32)),
    "cnn7": (cnn7, (3, 32, 32)),
}


@dataclass(frozen=True)
class Target:
    """A row of the table; `subset` 0 bounds all samples, `fused` the cross-entropy itself."""

    network: str
    step: str
    subset: int = 0
    fused: bool = False

    def __str__(self) -> str:
        if self.step == "plain":
            return f"{self.network}, plain"
        which = f"k = {self.subset}" if self.subset else "all samples"
        step = f"{self.step}, 1 row" if self.fused else self.step
        return f"{self.network}, {step}, {which}"


ROWS = (
    Target("small", "plain"),
    Target("small", "ibp"),
    Target("small", "ibp", 16),
    Target("small", "crown-ibp"),
    Target("small", "crown-ibp", fused=True),
    Target("small", "crown-ibp", 16),
    Target("resnet", "plain"),
    Target("resnet", "ibp", 16),
    Target("cnn7", "plain"),
    Target("cnn7", "ibp"),
)


def examine(row: Target, batch: int, tuned: bool) -> GpuReport:
    """The report of one row."""
    torch.manual_seed(0)
    make, shape = NETWORKS[row.network]
    model = make()
    x, y = torch.rand(batch, *shape), torch.randint(0, 10, (batch,))
    loss_fn = TrainingLoss(model)
    if row.step != "plain":
        subset = row.subset or None
        loss_fn = MixedLoss(model, 0.1, method=row.step, subset=subset, fused=row.fused, seed=0)
    # A plain step is what torch.compile makes of it by itself.
    options = cuda_options(loss_fn) if tuned and row.step != "plain" else {}
    return report_loss(loss_fn, x, y, options=options)


HEAD = (
    "network, step", "Triton", "library", "launches", "fused MB", "÷ plain", "library MB", "GFLOP",
    "÷ plain", "atomics", "syncs", "model ÷ plain, graphs", "without",
)  # fmt: skip


def line(row: Target, found: GpuReport, plain: GpuReport | None) -> str:
    """One row of the table as Markdown."""

    def ratio(value: float, base: float | None) -> str:
        return f"{value / base:.2f}" if base else "–"

    entries = [
        str(row), str(found.triton), str(found.library), str(found.launches),
        f"{found.fused_bytes / 1e6:.1f}", ratio(found.fused_bytes, plain and plain.fused_bytes),
        f"{found.library_bytes / 1e6:.1f}",
        f"{found.flops / 1e9:.3f}", ratio(found.flops, plain and plain.flops),
        str(found.atomics), str(len(found.synchronisations)),
        *(
            ratio(found.seconds(cuda_graph=on), plain and plain.seconds(cuda_graph=on))
            for on in (True, False)
        ),
    ]  # fmt: skip
    return "| " + " | ".join(entries) + " |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", choices=sorted(NETWORKS))
    parser.add_argument("--step", default="ibp", help="plain, or a bound method")
    parser.add_argument("--subset", type=int, default=0, help="k; 0 bounds all samples")
    parser.add_argument("--fused", action="store_true", help="one row for the cross-entropy")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument(
        "--apart", action="store_true", help="without the options of a compiled step"
    )
    parser.add_argument("--kernels", action="store_true", help="list every kernel")
    parser.add_argument("--resources", action="store_true", help="registers and spills")
    parser.add_argument("--code", type=Path, help="write the generated code here")
    parser.add_argument("--json", type=Path, help="also write the totals here")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    rows = ROWS
    if args.network:
        rows = (
            Target(args.network, "plain"),
            Target(args.network, args.step, args.subset, args.fused),
        )
    print(f"batch {args.batch}, float32, torch {torch.__version__}. {DISCLAIMER}\n")
    print("| " + " | ".join(HEAD) + " |\n|---|" + "---:|" * (len(HEAD) - 1))
    plain: dict[str, GpuReport] = {}
    totals = {}
    for row in dict.fromkeys(rows):
        found = examine(row, args.batch, not args.apart)
        if row.step == "plain":
            plain[row.network] = found
        print(line(row, found, plain.get(row.network)), flush=True)
        totals[str(row)] = found.to_dict()
        if args.kernels:
            for kernel in found.kernels:
                print(
                    f"    {kernel.kind:9} ×{kernel.side_by_side} {kernel.bytes / 1e6:8.3f} MB "
                    f"{kernel.flops / 1e6:9.2f} MFLOP  {' '.join(kernel.ops)}"
                )
        if args.resources:
            used = found.resources()
            print(
                f"    {len(used)} kernel configurations on sm_90: at most "
                f"{max(entry.registers for entry in used)} registers, "
                f"{sum(entry.spilled > 0 for entry in used)} spill"
            )
        if args.code:
            args.code.write_text("\n".join(graph.code for graph in found.graphs), encoding="utf-8")
    if args.json is not None:
        args.json.write_text(json.dumps(totals, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
