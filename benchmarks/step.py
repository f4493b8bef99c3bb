"""Cost of one training step over the plain step, beside other libraries.

All methods run in one process, interleaved: every round times one step of each, and the
ratio is taken within the round, so that a machine that slows down slows all of them. A
step is forward, loss, backward, gradient clipping and Adam. Each method trains its own
copy of the network.

    python benchmarks/step.py --device cpu --batch 128 --k 16 --network small --repeats 30

Others are measured where they can be imported (put their sources on PYTHONPATH):
auto_LiRPA (Verified-Intelligence/auto_LiRPA) and symbolic_interval
(tcwangshiqi-columbia/symbolic_interval).
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _auto_lirpa import Peer
from torch import Tensor, nn

from boundgraph.training.adversarial import AdversarialLoss
from boundgraph.training.losses import MixedLoss, TrainingLoss
from boundgraph.training.step import compile_step

CLIP_NORM = 10.0
Run = Callable[[], object]


def small() -> nn.Sequential:
    """The small MNIST network of Wong et al. and MixTrain (166,406 parameters)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100), nn.ReLU(),
        nn.Linear(100, 10),
    )  # fmt: skip


def large() -> nn.Sequential:
    """Their large MNIST network (1,974,762 parameters)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(32, 32, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(64, 64, 4, 2, 1), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 512), nn.ReLU(),
        nn.Linear(512, 512), nn.ReLU(),
        nn.Linear(512, 10),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {"small": small, "large": large}


@dataclass
class Entry:
    """One row of the table.

    Args:
        name: of the method.
        run: does one step.
        every: rounds between two of its measurements (more than 1 for slow methods).
        note: printed behind the row.
    """

    name: str
    run: Run
    every: int = 1
    note: str = ""
    milliseconds: list[float] = field(default_factory=list)
    ratios: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What is measured, and on what."""

    network: nn.Sequential
    x: Tensor
    y: Tensor
    eps: float
    k: int
    backend: str | None

    def trainer(
        self,
        make_loss: Callable[[nn.Module], TrainingLoss],
        backend: str | None,
        cuda_graphs: bool = False,
    ) -> Run:
        """One step of ours on an own copy of the network."""
        model = copy.deepcopy(self.network)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        loss_fn = make_loss(model)
        step = compile_step(
            model,
            optimizer,
            loss_fn,
            clip_norm=CLIP_NORM,
            backend=backend,
            cuda_graphs=cuda_graphs,
        )
        return lambda: step(self.x, self.y)

    def foreign(self, make_loss: Callable[[nn.Sequential], Callable[[], Tensor]]) -> Run:
        """One eager step on a loss computed by another library."""
        model = copy.deepcopy(self.network)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        loss_of = make_loss(model)

        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss_of().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()

        return run


def ours(setting: Setting, attacks: tuple[int, ...]) -> list[Entry]:
    """Our steps, eager and compiled, and PGD training."""
    eps, k = setting.eps, setting.k

    def mixed(subset: int | None) -> Callable[[nn.Module], TrainingLoss]:
        return lambda model: MixedLoss(model, eps, subset=subset, alpha=0.5, seed=0)

    entries = [Entry("plain", setting.trainer(TrainingLoss, None), note="eager")]
    rows: list[tuple[str, Callable[[nn.Module], TrainingLoss]]] = [
        (f"mixed, k={k}", mixed(k)),
        (f"mixed, k={len(setting.x)} (all)", mixed(None)),
    ]
    entries += [Entry(name, setting.trainer(make, None), note="eager") for name, make in rows]
    if setting.backend is not None:
        for name, make in [("plain", TrainingLoss), *rows]:
            run = setting.trainer(make, setting.backend)
            entries.append(Entry(f"{name}, compiled", run, note="one graph"))
            if setting.x.device.type == "cuda":
                run = setting.trainer(make, setting.backend, cuda_graphs=True)
                entries.append(Entry(f"{name}, CUDA graph", run, note="one CUDA graph"))
    for steps in attacks:
        run = setting.trainer(lambda m, s=steps: AdversarialLoss(m, eps, steps=s, seed=0), None)
        entries.append(Entry(f"PGD-{steps}", run, every=1 if steps < 20 else 5, note="eager"))
    return entries


def auto_lirpa(setting: Setting) -> list[Entry]:
    """auto_LiRPA's IBP, with margins as its specification.

    Raises:
        ImportError: it cannot be imported.
    """
    x, y, eps = setting.x, setting.y, setting.eps

    def loss(model: nn.Sequential, chosen: int, clean: bool) -> Callable[[], Tensor]:
        peer = Peer(model, x[:chosen])

        def compute() -> Tensor:
            index = torch.randperm(len(x), device=x.device)[:chosen]
            part, labels = x[index], y[index]
            eye = torch.eye(10, device=x.device)
            spec = eye[labels].unsqueeze(1) - eye.unsqueeze(0)
            lower, _ = peer.model.compute_bounds(
                x=(peer.ball(part, eps),), C=spec, method="IBP", bound_upper=False
            )
            result = F.cross_entropy(-lower, labels)
            if clean:
                result = 0.5 * F.cross_entropy(model(x), y) + 0.5 * result
            return result

        return compute

    everything = len(x)
    return [
        Entry(
            f"auto_LiRPA IBP + clean, k={setting.k}",
            setting.foreign(lambda model: loss(model, setting.k, True)),
        ),
        Entry(
            f"auto_LiRPA IBP + clean, k={everything}",
            setting.foreign(lambda model: loss(model, everything, True)),
        ),
        Entry(
            f"auto_LiRPA IBP alone, k={everything}",
            setting.foreign(lambda model: loss(model, everything, False)),
        ),
    ]


def symbolic_interval(setting: Setting) -> list[Entry]:
    """The reference code of MixTrain's bounds, on k samples beside the clean loss.

    Raises:
        ImportError: it cannot be imported.
    """
    from symbolic_interval.symbolic_network import naive_interval_analyze, sym_interval_analyze

    x, y, eps = setting.x, setting.y, setting.eps
    cuda = x.device.type == "cuda"

    def loss(model: nn.Sequential, analyze: Callable[..., Any]) -> Callable[[], Tensor]:
        def compute() -> Tensor:
            index = torch.randperm(len(x), device=x.device)[: setting.k]
            bound, _ = analyze(model, eps, x[index], y[index], use_cuda=cuda)
            return 0.5 * F.cross_entropy(model(x), y) + 0.5 * bound

        return compute

    return [
        Entry(
            f"symbolic_interval naive, k={setting.k}",
            setting.foreign(lambda model: loss(model, naive_interval_analyze)),
        ),
        Entry(
            f"symbolic_interval sym, k={setting.k}",
            setting.foreign(lambda model: loss(model, sym_interval_analyze)),
            every=10_000,
            note="one measurement",
        ),
    ]


PEERS: dict[str, Callable[[Setting], list[Entry]]] = {
    "auto_LiRPA": auto_lirpa,
    "symbolic_interval": symbolic_interval,
}


def others(setting: Setting, wanted: list[str]) -> tuple[list[Entry], list[str]]:
    """Rows of other libraries, and a line for each that is left out."""
    entries: list[Entry] = []
    skipped: list[str] = []
    for name, make in PEERS.items():
        if name not in wanted:
            skipped.append(f"{name}: left out (--peers)")
            continue
        try:
            entries += make(setting)
        except ImportError as error:
            skipped.append(f"{name}: not measured, it cannot be imported ({error})")
    return entries, skipped


def measure(entries: list[Entry], repeats: int, warmup: int, device: str) -> None:
    """Time all entries round by round; ratios are to `plain` of the same round."""

    def timed(run: Run) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - started)

    for entry in entries:
        started = time.perf_counter()
        for _ in range(1 if entry.every > 100 else warmup):
            entry.run()
        seconds = time.perf_counter() - started
        print(f"  warm: {entry.name} ({seconds:.1f} s)", file=sys.stderr, flush=True)
    bases = [entry for entry in entries if entry.name in ("plain", "plain, compiled")]
    for turn in range(repeats):
        # The order changes from round to round, so that no method always follows another.
        order = entries[turn % len(entries) :] + entries[: turn % len(entries)]
        now = {entry.name: timed(entry.run) for entry in order if turn % entry.every == 0}
        for entry in entries:
            if entry.name not in now:
                continue
            entry.milliseconds.append(now[entry.name])
            for base in bases:
                ratio = now[entry.name] / now[base.name]
                entry.ratios.setdefault(base.name, []).append(ratio)


def modelled(setting: Setting) -> str:
    """What the model of a GPU says of the same steps, forward and backward, over plain.

    A model from generated code, not a timing; see docs/gpu.md.
    """
    from boundgraph.gpu import GpuReport, report_loss, unsupported

    reason = unsupported()
    if reason is not None:
        return f"no modelled ratios: {reason}"
    x, y = setting.x.cpu(), setting.y.cpu()

    def found(make_loss: Callable[[nn.Module], TrainingLoss]) -> GpuReport:
        return report_loss(make_loss(copy.deepcopy(setting.network).cpu()), x, y)

    plain = found(TrainingLoss)
    lines = ["modelled (generated code and a roofline, not a timing), over plain compiled:"]
    for subset in (setting.k, None):
        mixed = found(lambda m, k=subset: MixedLoss(m, setting.eps, subset=k, alpha=0.5, seed=0))
        ratios = [
            mixed.seconds(cuda_graph=on) / plain.seconds(cuda_graph=on) for on in (True, False)
        ]
        lines.append(
            f"  mixed, k={subset or len(x)}: {ratios[0]:.2f} with CUDA graphs, {ratios[1]:.2f} "
            f"without ({mixed.launches} launches against {plain.launches})"
        )
    return "\n".join(lines)


def report(entries: list[Entry]) -> str:
    """The table as Markdown."""
    bases = [e.name for e in entries if e.name in ("plain", "plain, compiled")]
    head = ["step", "ms", *(f"× {base}" for base in bases), ""]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (1 + len(bases)) + "---|"]
    for entry in entries:
        numbers = [f"{statistics.median(entry.milliseconds):.1f}"]
        numbers += [f"{statistics.median(entry.ratios[base]):.2f}" for base in bases]
        lines.append(f"| {entry.name} | " + " | ".join(numbers) + f" | {entry.note} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", choices=sorted(NETWORKS), default="small")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--k", type=int, default=16, help="samples bounded per mixed step")
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--backend", default="inductor", help="of torch.compile; 'none' skips it")
    parser.add_argument("--attacks", type=int, nargs="*", default=[7, 40], help="PGD steps")
    parser.add_argument(
        "--peers", nargs="*", choices=sorted(PEERS), default=sorted(PEERS), help="other libraries"
    )
    parser.add_argument("--json", type=Path, default=None, help="also write the results here")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    setting = Setting(
        network=NETWORKS[args.network]().to(args.device),
        x=torch.rand(args.batch, 1, 28, 28, device=args.device),
        y=torch.randint(0, 10, (args.batch,), device=args.device),
        eps=args.eps,
        k=args.k,
        backend=None if args.backend == "none" else args.backend,
    )
    entries = ours(setting, tuple(args.attacks))
    foreign, skipped = others(setting, args.peers)
    entries += foreign
    measure(entries, args.repeats, args.warmup, args.device)
    where = f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    print(
        f"network {args.network}, batch {args.batch}, k {args.k}, eps {args.eps}, "
        f"{args.device}, {where}; medians of {args.repeats} interleaved rounds\n"
    )
    print(report(entries))
    for line in skipped:
        print(f"\n{line}")
    if args.device == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**20
        print(
            f"\n{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; at most {memory:.0f} "
            f"MiB allocated over all rows\n\n{modelled(setting)}"
        )
    if args.json is not None:
        rows = {
            entry.name: {
                "milliseconds": statistics.median(entry.milliseconds),
                "ratios": {b: statistics.median(r) for b, r in entry.ratios.items()},
                "measurements": len(entry.milliseconds),
            }
            for entry in entries
        }
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        record = {"settings": settings, "where": where, "rows": rows, "skipped": skipped}
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
