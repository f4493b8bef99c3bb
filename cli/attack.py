"""`boundgraph attack`: search for images that break a network."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from boundgraph.cli._console import Output, number
from boundgraph.cli._options import (
    Clip,
    DataName,
    Device,
    Download,
    Json,
    Limit,
    RunNorm,
    Seed,
    Target,
    Threads,
    Weights,
    check_device,
    examples,
    norm_for,
    parse_clip,
    set_threads,
)

if TYPE_CHECKING:
    from boundgraph.attacks import AttackResult

EXAMPLES = examples(
    "boundgraph attack runs/20260101-120000",
    "boundgraph attack model.py --data mnist --kind both --restarts 5 --limit 500",
)


class Kind(StrEnum):
    """Which attack."""

    pgd = "pgd"
    interval = "interval"
    both = "both"


def attack_command(
    target: Target,
    data: DataName = None,
    eps: Annotated[
        float | None, typer.Option("--eps", "-e", help="Radius.", show_default="0.1, or the run's")
    ] = None,
    kind: Annotated[
        Kind, typer.Option(help="pgd, interval (follows symbolic bounds), or both.")
    ] = Kind.pgd,
    steps: Annotated[int, typer.Option(help="Gradient steps of PGD.")] = 40,
    restarts: Annotated[int, typer.Option(help="Starts of the attack.")] = 1,
    loss: Annotated[str, typer.Option(help="What PGD climbs: margin, ce or dlr.")] = "margin",
    weights: Weights = None,
    clip: Clip = "0,1",
    norm: RunNorm = None,
    limit: Limit = None,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 256,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Attack held-out images, and count the ones whose class can be changed."""
    import torch

    from boundgraph import attacks
    from boundgraph.cli._subject import load_subject
    from boundgraph.data.labelled import labelled_batches
    from boundgraph.errors import ConfigError

    out = Output(as_json)
    set_threads(threads)
    check_device(device)
    limits = parse_clip(clip)
    subject = load_subject(target, data, weights, download=download, device=device)
    radius = eps
    if radius is None:
        radius = 0.1 if subject.config is None else float(subject.config["train"]["eps"])
    place = next(subject.model.parameters(), torch.empty(0)).device
    options: dict[str, Any] = {
        "steps": steps,
        "restarts": restarts,
        "clip": limits,
        "loss": loss,
        "seed": seed,
    }
    p = norm_for(norm, subject.config)
    if p != math.inf:
        if kind is not Kind.pgd:
            raise ConfigError("the interval attack searches L-infinity balls; use --kind pgd")
        options["norm"] = p
    found = {}
    for name in ("pgd", "interval") if kind is Kind.both else (kind.value,):
        run = getattr(attacks, name)
        pair = (subject.data.x_test, subject.data.y_test)
        found[name] = [
            run(subject.model, x.to(place), y.to(place), radius, **options)
            for x, y in labelled_batches(pair, batch, limit)
        ]
    summary = {name: _summary(parts) for name, parts in found.items()}
    rows = [
        (
            name,
            f"{entry['attacked']:.1%}",
            f"{entry['broken']:,} of {entry['n']:,}",
            number(entry["gradient_evaluations"]),
            number(entry["bound_evaluations"]),
            f"{entry['seconds']:.1f}",
        )
        for name, entry in summary.items()
    ]
    columns = ["attack", "still correct", "broken", "gradients", "bounds", "s"]
    title = f"{target}, {subject.data.name}, ε = {radius}"
    out.table(
        title, columns, rows, right=(1, 2, 3, 4, 5), caption="Broken includes misclassified images."
    )
    run_dir = None if subject.run is None else str(subject.run)
    out.finish({"eps": radius, "attacks": summary, "run_dir": run_dir})


def _summary(parts: list[AttackResult]) -> dict[str, Any]:
    n = sum(len(part.broken) for part in parts)
    broken = sum(int(part.broken.sum()) for part in parts)
    return {
        "n": n,
        "broken": broken,
        "attacked": 1 - broken / n,
        "gradient_evaluations": sum(part.gradient_evaluations for part in parts),
        "bound_evaluations": sum(part.bound_evaluations for part in parts),
        "seconds": sum(part.seconds for part in parts),
    }
