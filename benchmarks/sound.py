"""What rounding="sound" costs: extra width by value, and time, eager and compiled.

    python benchmarks/sound.py [RUN_DIR ...] [--data mnist] [--eps 0.00392] [--compile]

For a small network of the data set, trained plainly for 100 steps, and for run folders of
`boundgraph train`. The width is compared with that of the same bounds in float64; times are
interleaved, and the least ratio of processor times over several rounds is printed with the median.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _networks import plain_network
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.cli._subject import load_subject
from boundgraph.domains.interval import Interval


def extra(sound: Interval, ideal: Interval) -> float:
    """Mean widths compared: by how much the first is wider."""
    wide = sound.upper.double() - sound.lower.double()
    exact = ideal.upper - ideal.lower
    if not bool(torch.isfinite(exact).all()):
        wide, exact = -sound.lower.double(), -ideal.lower
        return float((wide - exact).mean())
    return float(wide.mean() / exact.mean().clamp(min=1e-300) - 1.0)


def traced(model: nn.Module, region: Any, y: Tensor, **options: Any) -> dict[str, Any]:
    program = bg.compile(model, region, spec=bg.Margin(10), **options)
    return program.trace_bounds(region, labels=y)


def widths(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, method: str, accumulate: str
) -> None:
    """Extra width of every interval, in the order of the program."""
    region = bg.LinfBall(x, eps, (0.0, 1.0))
    sound = traced(model, region, y, method=method, rounding="sound", accumulate=accumulate)
    wide = traced(
        model.double(), bg.LinfBall(x.double(), eps, (0.0, 1.0)), y, method=method, rounding="sound"
    )
    model.float()
    for name, value in sound.items():
        if isinstance(value, Interval):
            print(f"    {name:28} {extra(value, wide[name]):10.4%}")
    last = list(sound)[-1]
    others = torch.arange(10) != y.unsqueeze(1)
    proved = [
        int((b[last].lower[others].reshape(len(y), 9) > 0).all(1).sum()) for b in (sound, wide)
    ]
    # Against the distance between a margin and its bound, where upper ends are infinite.
    clean = model(x)
    gap = clean.gather(1, y.unsqueeze(1)) - clean - wide[last].lower
    lost = (wide[last].lower - sound[last].lower.double())[others]
    print(f"  {method}: extra {float(lost.mean() / gap[others].mean()):.4%} of the distance, "
          f"certified {proved[0]} of {len(y)}, {proved[1]} in float64")  # fmt: skip


def measure(runs: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(rounds):
        for position, run in enumerate(runs):
            started = time.process_time()
            run()
            times[position].append(time.process_time() - started)
    return times


def cost(model: nn.Module, x: Tensor, y: Tensor, eps: float, method: str, options: Any) -> None:
    region = bg.LinfBall(x, eps, (0.0, 1.0))
    runs: list[Callable[[], Any]] = []
    for rounding in ("nearest", "sound"):
        how = {"accumulate": options.accumulate} if rounding == "sound" else {}
        program = bg.compile(
            model, region, method=method, rounding=rounding, spec=bg.Margin(10), lower_only=True,
            **how,
        )  # fmt: skip
        inputs = program.check(region, labels=y)
        tensors = tuple(part for v in inputs for part in (v.lower, v.upper))  # type: ignore[union-attr]
        graph: Any = program.graph_module
        if options.compile:
            graph = torch.compile(graph, fullgraph=True)
        runs.append(lambda graph=graph, tensors=tensors: graph(*tensors, y))  # type: ignore[misc]
    with torch.no_grad():
        plain, sound = measure(runs, options.rounds)
    ratios = [b / a for a, b in zip(plain, sound, strict=True)]
    print(
        f"  {method}, {'compiled' if options.compile else 'eager'}, batch {len(x)}: "
        f"{min(plain) * 1e3:.2f} ms, sound {min(sound) * 1e3:.2f} ms; ratio "
        f"{min(sound) / min(plain):.2f} of minima, {statistics.median(ratios):.2f} in the median",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--data", default="mnist", help="for the plain network; none leaves it out")
    parser.add_argument("--network", default="small")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--eps", type=float, default=1 / 255)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--methods", default="ibp,crown-ibp")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="measure compiled programs")
    parser.add_argument("--accumulate", default="dtype", help="or float64, for ibp")
    parser.add_argument("--no-width", action="store_true")
    parser.add_argument("--no-time", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    subjects = []
    if options.data != "none":
        name = f"{options.network}, {options.data}, plain"
        subjects.append((name, *plain_network(options.data, options.network, options.steps)))
    for run in options.runs:
        found = load_subject(str(run), None, None)
        subjects.append((run.name, found.model.eval(), found.data.x_test, found.data.y_test))
    for name, model, x_test, y_test in subjects:
        x, y = x_test[: options.images], y_test[: options.images]
        print(name)
        for method in options.methods.split(","):
            if not options.no_width:
                widths(model, x, y, options.eps, method, options.accumulate)
            if not options.no_time:
                cost(model, x, y, options.eps, method, options)


if __name__ == "__main__":
    main()
