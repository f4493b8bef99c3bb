"""Which models are bounded, how long that takes, and whether the bounds hold.

Every torchvision classifier, randomly initialised, at the smallest input that it takes and
ten outputs; one subprocess each, with a limit on time and memory. Bounds are compared with
the model at sampled points of the region: random ones and corners.

    python benchmarks/coverage.py                               # all, ibp and crown-ibp
    python benchmarks/coverage.py --models 'resnet' --methods ibp --points 200
    python benchmarks/coverage.py --write docs/coverage.md      # the table of all results

Results are kept in a file, one line per model and method, so that a run can be continued.
auto_LiRPA is run, too, where it can be imported and `--peer` is given.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

SIZES = {"inception_v3": 75, "maxvit_t": 224, "vit_h_14": 56}
BIG = ("vit_h_14", "regnet_y_128gf")
METHODS = ("ibp", "crown-ibp")
GIGABYTE = 1 << 30


def input_size(name: str) -> int:
    """A small image that the architecture takes."""
    return SIZES.get(name, 64)


def build(name: str) -> Any:
    """A model with ten outputs, in evaluation mode; vision transformers are built for a size."""
    import torch
    from torchvision import models

    torch.manual_seed(0)
    options: dict[str, Any] = {"weights": None, "num_classes": 10}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    if name.startswith("vit"):
        options["image_size"] = input_size(name)
    model = models.get_model(name, **options).eval()
    for parameter in model.parameters():
        # The head of a vision transformer starts at zero, which would leave nothing to bound.
        if parameter.dim() > 1 and not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def check(name: str, method: str, eps: float, points: int) -> dict[str, Any]:
    """The check in float32; in float64 where the bounds overflow."""
    import torch

    from boundgraph.errors import NonFiniteError

    try:
        return check_in(torch.float32, name, method, eps, points)
    except NonFiniteError:
        return check_in(torch.float64, name, method, eps, points)


def check_in(dtype: Any, name: str, method: str, eps: float, points: int) -> dict[str, Any]:
    """Compile, bound, compare; seconds, gigabytes, width and how many points left the bounds."""
    import torch

    import boundgraph as bg

    model = build(name).to(dtype)
    size = input_size(name)
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)
    region = bg.LinfBall(x, eps=eps, clip=(0.0, 1.0))
    parameters = sum(p.numel() for p in model.parameters())
    before = memory()
    started = time.perf_counter()
    program = bg.compile(model, region, method=method, dynamic_batch=True)
    compiled = time.perf_counter() - started
    grown = memory() - before
    started = time.perf_counter()
    with torch.no_grad():
        bounds = program(region)
    seconds = time.perf_counter() - started
    result = {
        "dtype": str(dtype).removeprefix("torch."),
        "compile_s": round(compiled, 2),
        "compile_gb": round(grown, 2),
        "bound_s": round(seconds, 2),
        "nodes": len(program.ir.nodes),
        "parameters": parameters,
        "point_error": point_error(program, model, x),
        "finite": bool(bounds.lower.isfinite().all() and bounds.upper.isfinite().all()),
        "width": float((bounds.upper - bounds.lower).mean()),
    }
    return result | outside(model, region, bounds, points) | {"gb": round(memory(), 2)}


def point_error(program: Any, model: Any, x: Any) -> float:
    """How far a region of no width ends from the model's output, as a share of the output."""
    import torch

    import boundgraph as bg

    with torch.no_grad():
        bounds, value = program(bg.LinfBall(x, eps=0.0)), model(x)
    apart = torch.maximum((bounds.lower - value).abs(), (bounds.upper - value).abs())
    return float(apart.max() / value.abs().max())


def outside(model: Any, region: Any, bounds: Any, points: int) -> dict[str, Any]:
    """Points of the region whose outputs leave the bounds by more than rounding may do.

    What rounding may do comes from the rounding that the ops declare, for the values at hand
    (`boundgraph.testing.model_allowance`): once for the bounds, once for the model's own pass.
    Where it is not finite, nothing can be missed, so the largest excess is kept beside it.
    """
    import torch

    from boundgraph.domains.interval import Interval
    from boundgraph.testing import excess, model_allowance

    started = time.perf_counter()
    (moved,) = model_allowance(model, region, dynamic_batch=True)
    generator = torch.Generator().manual_seed(2)
    box, ends = region.interval(), Interval(bounds.lower, bounds.upper)
    worst, missed = 0.0, 0
    for index in range(points):
        share = torch.rand(box.lower.shape, generator=generator).to(box.lower.dtype)
        share = share.round() if index % 2 else share
        point = torch.minimum(box.lower + share * (box.upper - box.lower), box.upper)
        with torch.no_grad():
            value = model(point)
        worst = max(worst, float(excess(value, ends).max()))
        # NaN is no bound: such a point is not enclosed.
        missed += not bool((excess(value, ends, 2.0 * moved) == 0).all())
    return {
        "points": points,
        "missed": missed,
        "worst_excess": worst,
        "allowed": float(moved.max()),
        "check_s": round(time.perf_counter() - started, 2),
    }


def check_peer(name: str, method: str, eps: float) -> dict[str, Any]:
    """The same by auto_LiRPA."""
    import torch
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    model, size = build(name), input_size(name)
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    started = time.perf_counter()
    bounded = BoundedModule(model, x)
    compiled = time.perf_counter() - started
    lower, upper = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    given = BoundedTensor(x, PerturbationLpNorm(x_L=lower, x_U=upper))
    started = time.perf_counter()
    with torch.no_grad():
        low, high = bounded.compute_bounds(x=(given,), method=method)
    return {
        "compile_s": round(compiled, 2),
        "bound_s": round(time.perf_counter() - started, 2),
        "finite": bool(low.isfinite().all() and high.isfinite().all()),
        "width": float((high - low).mean()),
        "gb": round(memory(), 2),
    }


def memory() -> float:
    """The most that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIGABYTE


def run_apart(
    task: dict[str, Any], seconds: float, gigabytes: float, threads: int
) -> dict[str, Any]:
    """One check in a process of its own; an error is a result, too."""
    limit = int(gigabytes * GIGABYTE)

    def confine() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    command = [sys.executable, __file__, "--task", json.dumps(task), "--threads", str(threads)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, preexec_fn=confine
        )
    except subprocess.TimeoutExpired:
        return {"error": f"more than {seconds:.0f} s"}
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode == 0 and last.startswith("{"):
        return dict(json.loads(last))
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    wanted = [line for line in lines if re.match(r"\S*(Error|Exception)\b", line)]
    short = (wanted or lines or [f"exit status {done.returncode}"])[-1]
    return {"error": f"more than {gigabytes:g} GB" if "memory" in short.lower() else short[:160]}


COLUMNS = (
    "model | method | float | M params | nodes | compile s | bound s | GB | mean width "
    "| width 0: error | outside | note"
)


def table(results: list[dict[str, Any]]) -> str:
    rows = [f"| {COLUMNS} |", "|---" * (COLUMNS.count("|") + 1) + "|"]
    for item in results:
        cells = [item["model"], item["method"]]
        if "error" in item:
            cells += [""] * 9 + [item["error"].replace("|", "/")]
        else:
            missed = f"{item['missed']} of {item['points']}" if "missed" in item else ""
            apart = f"{item['point_error']:.1e}" if "point_error" in item else ""
            cells += [
                item.get("dtype", "float32").removeprefix("float"),
                f"{item['parameters'] / 1e6:.1f}" if "parameters" in item else "",
                str(item.get("nodes", "")),
                str(item["compile_s"]),
                str(item["bound_s"]),
                str(item["gb"]),
                f"{item['width']:.2g}" if item["finite"] else "not finite",
                apart,
                missed,
                "",
            ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def counts(results: list[dict[str, Any]]) -> str:
    """How many models each method bounded, and the reasons of the others."""
    lines = []
    for method in dict.fromkeys(item["method"] for item in results):
        own = [item for item in results if item["method"] == method]
        done = [item for item in own if "error" not in item]
        double = sum(item.get("dtype") == "float64" for item in done)
        points = sum(item.get("points", 0) for item in done)
        missed = sum(item.get("missed", 0) for item in done)
        strict = sum(item.get("worst_excess", 0.0) > 0 for item in done)
        lines.append(
            f"- `{method}`: {len(own)} models tried, {len(done)} bounded, {double} of them in "
            f"float64 because float32 overflowed. {missed} of {points} sampled points outside; "
            f"before any allowance for rounding, {strict} models had a point outside."
        )
        reasons = Counter(item["error"] for item in own if "error" in item)
        lines += [f"    - {count} × {reason}" for reason, count in reasons.most_common()]
    return "\n".join(lines)


def page(results: list[dict[str, Any]], options: argparse.Namespace, total: int) -> str:
    import torch
    import torchvision

    tried = len({item["model"] for item in results})
    partial = (
        f" **A partial run: the other {total - tried} have not been tried**, so nothing is said "
        "about them here, nor about a method where a model has no row for it."
        if tried < total
        else ""
    )
    return f"""# Coverage

Which of torchvision's {total} classifiers can be bounded.{partial}
{tried} were tried, each with random
weights, ten outputs and a dynamic batch, in a process of its own with at most
{options.seconds:.0f} s and {options.gigabytes:g} GB, on a batch of one image of 64 × 64
(inception 75, maxvit 224, vit_h_14 56), ε = {options.eps:g} around a random image, clipped to
[0, 1].

{counts(results)}

What this shows is that these models are captured, that each of their ops has a rule and that the
bounds enclose what was sampled. It does not show useful bounds: widths of untrained networks are
astronomical, as an interval grows by a factor with every layer. Sampled points are then a weak
check, and so is their allowance for rounding, which grows as the bounds do. The column `width 0`
is a stronger one: a region of no width must give the model's output, and the error is the
largest difference as a share of the largest output.

```
python benchmarks/coverage.py --methods {" ".join(options.methods)} --eps {options.eps:g} \\
    --points {options.points} --seconds {options.seconds:.0f} --write docs/coverage.md
```

{date.today():%-d %B %Y}, torch {torch.__version__}, torchvision {torchvision.__version__},
{options.threads} thread(s) of a busy CPU, so times are upper bounds. `GB` is the most that the
process held. Points: random ones and corners, evaluated in the dtype of the bounds.

{table(results)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default="", help="regular expression on the names")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--eps", type=float, default=1e-4)
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--results", type=Path, default=Path("coverage.jsonl"))
    parser.add_argument("--write", type=Path, help="write the table of all results there")
    parser.add_argument("--peer", action="store_true", help="run auto_LiRPA, too")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        import torch

        torch.set_num_threads(options.threads)
        task = json.loads(options.task)
        peer = task.pop("peer", False)
        print(json.dumps(check_peer(**task) if peer else check(**task)))
        return
    import torchvision

    known = []
    if options.results.exists():
        known = [json.loads(line) for line in options.results.read_text().splitlines()]
    done = {(item["model"], item["method"]) for item in known}
    names = torchvision.models.list_models(module=torchvision.models)
    total = len(names)
    names = [name for name in names if re.search(options.models, name)]
    for name in sorted(names, key=lambda name: name in BIG):
        for method in options.methods:
            for peer in (False, True) if options.peer else (False,):
                label = f"{method} (auto_LiRPA)" if peer else method
                if (name, label) in done:
                    continue
                task = {"name": name, "method": method, "eps": options.eps}
                task |= {"peer": True} if peer else {"points": options.points}
                # Big models need room for their parameters beside the 6 GB.
                room = options.gigabytes * (3 if name in BIG else 1)
                found = run_apart(task, options.seconds, room, options.threads)
                found = {"model": name, "method": label} | found
                known.append(found)
                print(json.dumps(found), flush=True)
                with options.results.open("a") as file:
                    file.write(json.dumps(found) + "\n")
    if options.write:
        found = sorted(known, key=lambda item: (item["method"], item["model"]))
        options.write.write_text(page(found, options, total))


if __name__ == "__main__":
    main()
