"""Which models are bounded, how long that takes, and whether the bounds hold.

Every torchvision model of a family, randomly initialised, at a small input and with few
classes. Bounds are compared with the model at sampled points of the region: random ones and
corners. torch is imported once; each model and method then runs in a forked process of its
own, with a limit on time and memory, so that one failure costs one row.

    python benchmarks/coverage.py                               # all classifiers, both methods
    python benchmarks/coverage.py --models 'resnet' --methods ibp --points 20
    python benchmarks/coverage.py --family segmentation video
    python benchmarks/coverage.py --write docs/coverage.md      # the tables of all results

Results are kept in a file, one line per model and method, so that a run can be continued.
auto_LiRPA is run, too, where it can be imported and `--peer` is given.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import re
import resource
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from _auto_lirpa import Peer
from coverage_models import FAMILIES, build, family_of, input_shape, names_of
from coverage_page import page
from torch.utils import _pytree as pytree

import boundgraph as bg
from boundgraph.compiler import CompileOptions, compile_capture
from boundgraph.domains.interval import Interval
from boundgraph.errors import NonFiniteError
from boundgraph.frontends.capture import Capture, capture
from boundgraph.testing import capture_allowance, excess

METHODS = ("ibp", "crown-ibp")
GIGABYTE = 1 << 30
# Points that the model is run on at a time.
BATCH = 10


def check(double: bool, **task: Any) -> dict[str, Any]:
    """The check in float32; in float64 where the bounds overflow, or are known to."""
    found: dict[str, Any] = {"finite": False}
    if not double:
        with contextlib.suppress(NonFiniteError):
            found = check_in(torch.float32, **task)
    return found if found["finite"] else check_in(torch.float64, **task)


def check_in(
    dtype: torch.dtype, name: str, method: str, eps: float, classes: int | None, points: int
) -> dict[str, Any]:
    """Compile, bound, compare; seconds, gigabytes, width and how many points left the bounds."""
    model = build(name, classes).to(dtype)
    shape = input_shape(name)
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    region = bg.LinfBall(x, eps=eps, clip=(0.0, 1.0))
    before, started = memory(), seconds()
    captured = capture(model, (x,), dynamic_batch=True)
    names = tuple(value.name for value in captured.program.inputs)
    program = compile_capture(captured, names, CompileOptions(method=method, dynamic_batch=True))
    compiled, grown = seconds() - started, memory() - before
    started = seconds()
    with torch.no_grad():
        bounds = ends_of(program(region))
    result = {
        "dtype": str(dtype).removeprefix("torch."),
        "input": shape,
        "frontend": captured.frontend,
        "compile_s": round(compiled, 2),
        "compile_gb": round(grown, 2),
        "bound_s": round(seconds() - started, 2),
        "nodes": len(program.ir.nodes),
        "parameters": sum(p.numel() for p in model.parameters()),
        "point_error": point_error(program, model, x),
        "finite": all(bool(b.lower.isfinite().all() and b.upper.isfinite().all()) for b in bounds),
        "width": max(float((b.upper - b.lower).mean()) for b in bounds),
        "gb": round(memory(), 2),
    }
    return result | outside(model, captured, region, bounds, points)


def ends_of(bounds: Any) -> list[Interval]:
    """The bounds of each output tensor."""
    lower, upper = pytree.tree_leaves(bounds.lower), pytree.tree_leaves(bounds.upper)
    return [Interval(a, b) for a, b in zip(lower, upper, strict=True)]


def point_error(program: Any, model: Any, x: torch.Tensor) -> float:
    """How far a region of no width ends from the model's output, as a share of the output."""
    with torch.no_grad():
        bounds = ends_of(program(bg.LinfBall(x, eps=0.0)))
        values = pytree.tree_leaves(model(x))
    return max(
        float(torch.maximum((b.lower - v).abs(), (b.upper - v).abs()).max() / v.abs().max())
        for b, v in zip(bounds, values, strict=True)
    )


def outside(
    model: Any, captured: Capture, region: Any, bounds: list[Interval], points: int
) -> dict[str, Any]:
    """Points of the region whose outputs leave the bounds by more than rounding may do.

    What rounding may do comes from the rounding that the ops declare, for the values at hand
    (`boundgraph.testing.capture_allowance`): once for the bounds, once for the model's own pass.
    Where it is not finite, nothing can be missed; so points that leave the bounds at all are
    counted, too.
    """
    started = seconds()
    allowed = capture_allowance(captured, region)
    generator = torch.Generator().manual_seed(2)
    box = region.interval()
    worst, missed, strict = 0.0, 0, 0
    for first in range(0, points, BATCH):
        count = min(BATCH, points - first)
        share = torch.rand((count, *box.lower.shape[1:]), generator=generator).to(box.lower.dtype)
        # Every other point is a corner.
        share[1::2] = share[1::2].round()
        inputs = torch.minimum(box.lower + share * (box.upper - box.lower), box.upper)
        with torch.no_grad():
            values = pytree.tree_leaves(model(inputs))
        found = torch.stack(
            [
                torch.stack([excess(v, b, room).flatten(1).amax(1) for room in (0.0, 2.0 * moved)])
                for v, b, moved in zip(values, bounds, allowed, strict=True)
            ]
        ).amax(0)
        worst = max(worst, float(found[0].max()))
        strict += int((found[0] > 0).sum())
        missed += int((found[1] > 0).sum())
    return {
        "points": points,
        "missed": missed,
        "strict": strict,
        "worst_excess": worst,
        "allowed": max(float(moved.max()) for moved in allowed),
        "check_s": round(seconds() - started, 2),
    }


def check_peer(name: str, method: str, eps: float, classes: int | None) -> dict[str, Any]:
    """The same by auto_LiRPA."""
    model, shape = build(name, classes), input_shape(name)
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(1))
    started = seconds()
    peer = Peer(model, x)
    compiled = seconds() - started
    started = seconds()
    with torch.no_grad():
        low, high = peer.model.compute_bounds(x=(peer.ball(x, eps),), method=method)
    return {
        "dtype": "float32",
        "input": shape,
        "compile_s": round(compiled, 2),
        "bound_s": round(seconds() - started, 2),
        "finite": bool(low.isfinite().all() and high.isfinite().all()),
        "width": float((high - low).mean()),
        "gb": round(memory(), 2),
    }


def seconds() -> float:
    """Processor time of this process: other work on the machine does not count."""
    return time.process_time()


def memory() -> float:
    """The most that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIGABYTE


def warm_up() -> None:
    """Import what compilation imports when it is first used."""
    layer = torch.nn.TransformerEncoderLayer(4, 2, 4, batch_first=True).eval()
    bg.compile(layer, bg.LinfBall(torch.zeros(1, 2, 4), eps=0.1), frontend="torch_export")


def run_apart(task: dict[str, Any], limit: float, gigabytes: float, threads: int) -> dict[str, Any]:
    """One check in a forked process; an error is a result, too.

    Args:
        task: arguments of `check` or `check_peer`.
        limit: seconds of processor time; twenty times that on the clock.
        gigabytes: of memory.
        threads: of torch.
    """
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sending, task, limit, gigabytes, threads))
    process.start()
    sending.close()
    too_long = {"error": f"more than {limit:.0f} s"}
    try:
        return dict(receiving.recv()) if receiving.poll(20 * limit) else too_long
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGXCPU:
            return too_long
        return {"error": f"the process ended with status {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _child(
    sending: Connection, task: dict[str, Any], limit: float, gigabytes: float, threads: int
) -> None:
    size = int(gigabytes * GIGABYTE)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))
    torch.set_num_threads(threads)
    peer = task.pop("peer", False)
    try:
        sending.send(check_peer(**task) if peer else check(**task))
    except Exception as error:
        # Any failure of one model is a row of the table, with what it was.
        text = next((line for line in str(error).splitlines() if line.strip()), "")
        if re.search(r"memory|bad_alloc", f"{type(error).__name__} {text}", re.IGNORECASE):
            sending.send({"error": f"more than {gigabytes:g} GB"})
        else:
            sending.send({"error": f"{type(error).__name__}: {text}"[:160]})


def known_results(path: Path) -> list[dict[str, Any]]:
    """One result per model and method: the last."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    return list({(item["model"], item["method"]): item for item in found}.values())


def run(options: argparse.Namespace) -> None:
    """Try what has no result yet."""
    known = known_results(options.results)
    if options.retry:
        known = [item for item in known if "error" not in item]
    done = {(item["model"], item["method"]) for item in known}
    # Where intervals overflow in float32, what is built on them does.
    double = {item["model"] for item in known if item.get("dtype") == "float64"}
    names = [name for family in options.family for name in names_of(family)]
    warm_up()
    for method in options.methods:
        for name in filter(re.compile(options.models).search, names):
            for peer in (False, True) if options.peer else (False,):
                label = f"{method}, {options.classes:,} outputs" if options.classes else method
                label += " (auto_LiRPA)" if peer else ""
                if (name, label) in done:
                    continue
                task = {"name": name, "method": method, "eps": options.eps}
                task["classes"] = options.classes
                own = {"points": options.points, "double": name in double}
                task |= {"peer": True} if peer else own
                found = run_apart(task, options.seconds, options.gigabytes, options.threads)
                limits = {"limit_s": options.seconds, "limit_gb": options.gigabytes}
                found = {"model": name, "method": label, "family": family_of(name)} | limits | found
                print(json.dumps(found), flush=True)
                with options.results.open("a") as file:
                    file.write(json.dumps(found) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--family", nargs="+", default=["classification"], choices=FAMILIES)
    parser.add_argument("--models", default="", help="regular expression on the names")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--classes", type=int, help="outputs; default: ten, of pixels two")
    parser.add_argument("--eps", type=float, default=1e-4)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--results", type=Path, default=Path("coverage.jsonl"))
    parser.add_argument("--retry", action="store_true", help="try models that failed again")
    parser.add_argument("--write", type=Path, help="write the tables of all results there")
    parser.add_argument("--peer", action="store_true", help="run auto_LiRPA, too")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run(options)
    if options.write:
        order = {method: i for i, method in enumerate(METHODS)}
        found = sorted(
            known_results(options.results),
            key=lambda item: (order.get(item["method"], len(order)), item["model"]),
        )
        totals = {family: len(names_of(family)) for family in FAMILIES}
        options.write.write_text(page(found, totals, options.eps))


if __name__ == "__main__":
    sys.exit(main())
