"""Backward bounds beside auto_LiRPA: tightness, time and memory, from one run.

Both sides bound the same margins on the same weights with the same relu choice. Times are
interleaved and their least ones compared; peak memory is that of a process of its
own. A target is printed beside each ratio.

    python benchmarks/backward.py --quick
    python benchmarks/backward.py --networks small large --parts bounds alpha --repeats 5
    python benchmarks/backward.py --parts train memory --batch 16 --threads 1 --clock cpu
    python benchmarks/backward.py --write        # the table goes into docs/benchmarks.md

auto_LiRPA (Verified-Intelligence/auto_LiRPA) is measured where it can be imported: put its
sources on PYTHONPATH. `small` and `large` learn from MNIST and the others from CIFAR-10
where BOUNDGRAPH_DATA or torchvision's folder has them; otherwise weights stay random.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import _auto_lirpa
import torch
from _networks import NETWORKS, Subject, subject
from _timing import CLOCKS, Run, in_own_process, interleaved, peak_of, ratio
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.domains.specs import OtherMargins
from boundgraph.runtime.optimized import OptimizedProgram
from boundgraph.training.losses import MixedLoss
from boundgraph.training.step import compile_step

PARTS = ("tightness", "bounds", "alpha", "symbolic", "train", "memory")
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- backward: begin -->", "<!-- backward: end -->"
RADIUS = {"small": 0.05, "large": 0.02, "cnn7": 1 / 255, "resnet": 1 / 255}
CLIP_NORM = 10.0


@dataclass(frozen=True)
class Row:
    """One line of the table; None where a side was not measured.

    Args:
        what: was measured, and the network.
        ours, theirs: seconds, bytes or a margin.
        ratio: ours over theirs, or a relative difference.
        target: what `ratio` should be at most.
        unit: of `ours` and `theirs`.
        note: behind the row.
    """

    network: str
    what: str
    ours: float | None
    theirs: float | None
    ratio: float | None
    target: float | None
    unit: str
    note: str = ""


class Bench:
    """One network, both sides.

    Args:
        name: of the network.
        args: the command line.
        peer: auto_LiRPA can be imported.
    """

    def __init__(self, name: str, args: argparse.Namespace, peer: bool) -> None:
        self.name, self.args, self.peer = name, args, peer
        self.subject: Subject = subject(name, max(args.count, args.batch), args.steps)
        self.eps = args.eps if args.eps is not None else RADIUS[name]
        self.x, self.y = self.subject.x[: args.count], self.subject.y[: args.count]

    def ours(self, method: str, schedule: str = "auto", **search: Any) -> Callable[[], Tensor]:
        """Lower margins `[batch, 9]` by us; `search` changes how slopes are searched."""
        region = bg.LinfBall(self.x, eps=self.eps, clip=(0.0, 1.0))
        program = bg.compile(
            self.subject.model,
            region,
            method=method,
            spec=OtherMargins(classes=10),
            lower_only=method in ("crown-ibp", "crown", "alpha-crown"),
            schedule=schedule,
        )
        if search:
            assert isinstance(program, OptimizedProgram)
            program.search = replace(program.search, **search)

        def run() -> Tensor:
            with torch.no_grad():
                return program(region, labels=self.y).lower

        return run

    def theirs(self, method: str, **options: Any) -> Callable[[], Tensor]:
        peer = _auto_lirpa.Peer(copy.deepcopy(self.subject.model), self.x, **options)

        def run() -> Tensor:
            if method == "alpha-CROWN":
                return peer.margins(self.x, self.y, self.eps, method).detach()
            with torch.no_grad():
                return peer.margins(self.x, self.y, self.eps, method)

        return run

    def tightness(self) -> Iterator[Row]:
        """The largest difference of margins over their mean size, at an equal relu choice."""
        for method, their_name in (("ibp", "IBP"), ("crown-ibp", "CROWN-IBP"), ("crown", "CROWN")):
            a = self.ours(method)()
            if not self.peer:
                yield Row(
                    self.name, f"{method}, mean margin", float(a.mean()), None, None, None, ""
                )
                continue
            b = self.theirs(their_name)()
            apart = float((a - b).abs().max() / b.abs().mean())
            yield Row(
                self.name,
                f"{method}, mean margin",
                float(a.mean()),
                float(b.mean()),
                apart,
                1e-4,
                "",
                "largest relative difference",
            )

    def bounds(self) -> Iterator[Row]:
        for method, their_name, target in (
            ("crown-ibp", "CROWN-IBP", None),
            ("crown", "CROWN", 0.6),
        ):
            runs: dict[str, Run] = {"ours": self.ours(method)}
            if self.peer:
                runs["theirs"] = self.theirs(their_name)
            yield self.timed(f"{method}, {len(self.x)} images", runs, target)

    def symbolic(self) -> Iterator[Row]:
        runs: dict[str, Run] = {"ours": self.ours("symbolic", "windows")}
        if self.peer:
            runs["theirs"] = self.theirs("forward")
        yield self.timed(f"symbolic forward on windows, {len(self.x)} images", runs, 0.05)

    def alpha(self) -> Iterator[Row]:
        """20 iterations on both sides; theirs with its default step size, 0.5.

        Ours leaves decided images alone unless told otherwise; both ways are measured.
        """
        runs: dict[str, Run] = {
            "ours": self.ours("alpha-crown"),
            "all": self.ours("alpha-crown", decided=True),
        }
        if self.peer:
            search = {"optimize_bound_args": {"iteration": 20}}
            runs["theirs"] = self.theirs("alpha-CROWN", **search)
        last: dict[str, Tensor] = {}
        kept = {name: self.keep(last, name, run) for name, run in runs.items()}
        found = interleaved(kept, self.args.alpha_repeats, self.args.clock, warmup=0)
        worst = {name: margin.amin(1) for name, margin in last.items()}
        crown = self.ours("crown")().amin(1)
        open_, theirs = crown <= 0, worst.get("theirs")
        count = len(self.x)
        yield self.row(
            f"alpha-crown, {count} images, those that crown decides left alone", found, 0.2
        )
        if bool(open_.any()):
            what = f"mean worst margin, {int(open_.sum())} images that crown leaves undecided"
            left = None if theirs is None else theirs[open_]
            yield margins(what, self.name, worst["ours"][open_], left, crown[open_])
        found["ours"] = found.pop("all")
        yield self.row(f"alpha-crown, {count} images, every margin searched", found, 0.2)
        yield margins(f"mean worst margin, {count} images", self.name, worst["all"], theirs, crown)

    @staticmethod
    def keep(last: dict[str, Tensor], name: str, run: Callable[[], Tensor]) -> Run:
        def kept() -> None:
            last[name] = run()

        return kept

    def train(self) -> Iterator[Row]:
        """Steps with clean loss, gradient clipping and Adam; the bound loss of every sample."""
        x, y = self.subject.x[: self.args.batch], self.subject.y[: self.args.batch]
        for fused, target, compiled_target in ((False, 0.95, 0.65), (True, 0.7, 0.7)):
            runs: dict[str, Run] = {"ours": our_step(self.subject.model, x, y, fused, None)}
            if self.args.backend != "none":
                print(f"  compiling {self.name}, fused={fused}", file=sys.stderr, flush=True)
                runs["compiled"] = our_step(self.subject.model, x, y, fused, self.args.backend)
            if self.peer:
                runs["theirs"] = their_step(self.subject.model, x, y, fused)
            found = interleaved(runs, self.args.repeats, self.args.clock, warmup=2)
            what = f"{'fused ' if fused else ''}crown-ibp step, batch {len(x)}"
            yield self.row(what + ", eager", found, target)
            if "compiled" in found:
                found["ours"] = found.pop("compiled")
                yield self.row(what + ", compiled", found, compiled_target)

    def memory(self) -> Iterator[Row]:
        """Peak growth of a process during one step, each side in a process of its own."""
        common = ["--networks", self.name, "--batch", str(self.args.batch), "--steps", "0"]
        common += ["--threads", str(torch.get_num_threads())]
        kinds = [
            ("eager", "ours"),
            *([] if self.args.backend == "none" else [("compiled", "compiled")]),
        ]
        theirs = self.child([*common, "--child", "theirs"]) if self.peer else None
        for label, kind in kinds:
            print(f"  memory of {self.name}, {label}", file=sys.stderr, flush=True)
            ours = self.child([*common, "--child", kind])
            notes = [value for value in (ours, theirs) if isinstance(value, str)]
            a = None if isinstance(ours, str) else ours
            b = None if isinstance(theirs, str) else theirs
            quotient = None if a is None or b is None else a / b
            what = f"crown-ibp step, batch {self.args.batch}, extra memory, {label}"
            yield Row(self.name, what, a, b, quotient, 0.55, "B", "; ".join(notes))

    def child(self, arguments: list[str]) -> float | str:
        found = in_own_process(__file__, [*arguments, "--backend", self.args.backend], 600)
        return found if isinstance(found, str) else float(found["peak"])

    def timed(self, what: str, runs: dict[str, Run], target: float | None) -> Row:
        return self.row(what, interleaved(runs, self.args.repeats, self.args.clock), target)

    def row(self, what: str, found: dict[str, list[float]], target: float | None) -> Row:
        ours, theirs = found["ours"], found.get("theirs")
        both = None if theirs is None else ratio(ours, theirs)
        least = None if theirs is None else min(theirs)
        return Row(self.name, what, min(ours), least, both, target, "s")


def margins(what: str, network: str, ours: Tensor, theirs: Tensor | None, crown: Tensor) -> Row:
    """At least as tight is what counts; `crown` says where the search began."""
    note = f"crown {float(crown.mean()):.4f}"
    if theirs is None:
        return Row(network, what, float(ours.mean()), None, None, None, "", note)
    a, b = float(ours.mean()), float(theirs.mean())
    note += "; at least as tight" if a >= b else f"; looser by {b - a:.4f}"
    return Row(network, what, a, b, None, None, "", note)


def our_step(model: nn.Module, x: Tensor, y: Tensor, fused: bool, backend: str | None) -> Run:
    own = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(own.parameters(), lr=1e-5)
    loss = MixedLoss(own, 0.01, method="crown-ibp", subset=None, alpha=0.5, fused=fused, seed=0)
    step = compile_step(own, optimizer, loss, clip_norm=CLIP_NORM, backend=backend)
    return lambda: step(x, y)


def their_step(model: nn.Module, x: Tensor, y: Tensor, fused: bool) -> Run:
    own = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(own.parameters(), lr=1e-5)
    make = _auto_lirpa.fused_loss if fused else _auto_lirpa.crown_ibp_loss
    loss = make(own, x, y, 0.01)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        torch.nn.utils.clip_grad_norm_(own.parameters(), CLIP_NORM)
        optimizer.step()

    return run


def child(args: argparse.Namespace) -> None:
    """Measure one step's peak memory and print it."""
    found = subject(args.networks[0], args.batch, args.steps)
    if args.child == "theirs":
        run = their_step(found.model, found.x, found.y, False)
    else:
        backend = args.backend if args.child == "compiled" else None
        run = our_step(found.model, found.x, found.y, False, backend)
    print(json.dumps({"peak": peak_of(run)}))


def shown(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit == "s":
        return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"
    return f"{value / 2**20:.0f} MiB" if unit == "B" else f"{value:.4f}"


def table(rows: list[Row]) -> str:
    lines = [
        "| network | what | ours | auto_LiRPA | ratio | target | |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        quotient = "–" if row.ratio is None else f"{row.ratio:.2g}"
        if row.ratio is not None and row.target is not None and row.ratio <= row.target:
            quotient = f"**{quotient}**"
        target = "" if row.target is None else f"≤ {row.target:g}"
        sides = [shown(value, row.unit) for value in (row.ours, row.theirs)]
        cells = [row.network, row.what, *sides, quotient, target, row.note]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write(text: str) -> None:
    """Put the text between the page's marks, or at its end."""
    page = PAGE.read_text(encoding="utf-8")
    block = f"{BEGIN}\n{text}\n{END}"
    if BEGIN in page:
        head, rest = page.split(BEGIN, 1)
        page = head + block + rest.split(END, 1)[1]
    else:
        page = f"{page.rstrip()}\n\n## Backward bounds against auto_LiRPA\n\n{block}\n"
    PAGE.write_text(page, encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=sorted(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="small network, few images and rounds")
    parser.add_argument("--count", type=int, default=10, help="images whose bounds are computed")
    parser.add_argument("--batch", type=int, default=16, help="of a training step")
    parser.add_argument("--steps", type=int, default=400, help="plain steps before measuring")
    parser.add_argument("--eps", type=float, default=None, help="radius; by default the network's")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--alpha-repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--backend", default="inductor", help="of torch.compile; 'none' skips it")
    parser.add_argument("--json", type=Path, default=None, help="also write the rows here")
    parser.add_argument(
        "--write", action="store_true", help="put the table into docs/benchmarks.md"
    )
    parser.add_argument("--child", choices=("ours", "compiled", "theirs"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.networks, args.count, args.repeats = ["small"], min(args.count, 4), 3
    return args


def main() -> None:
    args = arguments()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.child:
        child(args)
        return
    try:
        _auto_lirpa.load()
        missing = None
    except ImportError as error:
        missing = f"auto_LiRPA was not measured: it cannot be imported ({error})"
        print(missing, file=sys.stderr)
    rows: list[Row] = []
    weights = []
    for name in args.networks:
        bench = Bench(name, args, missing is None)
        weights.append(f"{name}: {bench.subject.weights}, ε {bench.eps:.4g}")
        for part in args.parts:
            print(f"{name}: {part}", file=sys.stderr, flush=True)
            for row in getattr(bench, part)():
                rows.append(row)
                print("  " + table([row]).splitlines()[-1], file=sys.stderr, flush=True)
    command = "python benchmarks/backward.py " + shlex.join(
        a for a in sys.argv[1:] if a != "--write"
    )
    where = f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    date = datetime.date.today().strftime("%d %B %Y")
    text = (
        f"`{command}` ({date}, {where}, {args.clock} time; {'; '.join(weights)})\n\n{table(rows)}"
    )
    text += f"\n\n{missing}" if missing else ""
    print(text)
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    if args.write:
        write(text)


if __name__ == "__main__":
    main()
