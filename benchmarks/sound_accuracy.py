"""How many images keep their certificate under rounding="sound".

    python benchmarks/sound_accuracy.py RUN_DIR:EPS ... [--images 1000] [--methods ibp,crown-ibp]

For run folders of `boundgraph train`: certified and correct, both ways of rounding, the same
images, and the smallest margin that was certified to nearest.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.cli._subject import load_subject


def least_margins(model: nn.Module, x: Tensor, y: Tensor, eps: float, **options: Any) -> Tensor:
    """The lower bound of the smallest margin of each image."""
    found = []
    with torch.no_grad():
        program: Any = None
        for part, labels in zip(x.split(100), y.split(100), strict=True):
            region = bg.LinfBall(part, eps, (0.0, 1.0))
            if program is None:
                program = bg.compile(model, region, spec=bg.Margin(10), lower_only=True, **options)
            lower = program(region, labels=labels).lower
            others = torch.arange(10) != labels.unsqueeze(1)
            found.append(lower[others].reshape(len(labels), 9).amin(1))
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="RUN_DIR:EPS")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--methods", default="ibp,crown-ibp")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for text in options.runs:
        folder, _, eps = text.rpartition(":")
        subject = load_subject(folder, None, None)
        model = subject.model.eval()
        x, y = subject.data.x_test[: options.images], subject.data.y_test[: options.images]
        for method in options.methods.split(","):
            margins, seconds = [], []
            for rounding in ("nearest", "sound"):
                started = time.process_time()
                margins.append(
                    least_margins(model, x, y, float(eps), method=method, rounding=rounding)
                )
                seconds.append(time.process_time() - started)
            counts = [int((lower > 0).sum()) for lower in margins]
            near = float(margins[0][margins[0] > 0].min()) if counts[0] else float("nan")
            lost = (margins[0] - margins[1])[margins[0] > 0]
            print(
                f"{Path(folder).name}, eps {eps}, {method}: certified {counts[0]} to nearest, "
                f"{counts[1]} sound, of {len(y)}; least certified margin {near:.2e}, largest loss "
                f"of a margin {float(lost.max()) if len(lost) else 0.0:.2e}; "
                f"{seconds[0]:.1f} s, {seconds[1]:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
