"""`boundgraph evaluate`: clean, attacked and certified accuracy of a trained network."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from boundgraph.cli._console import Output
from boundgraph.cli._options import (
    Clip,
    DataName,
    Device,
    Download,
    Json,
    Limit,
    Methods,
    Rounding,
    RunNorm,
    Seed,
    Target,
    Threads,
    Weights,
    check_device,
    examples,
    norm_for,
    parse_clip,
    parse_methods,
    set_threads,
)

EXAMPLES = examples(
    "boundgraph evaluate runs/20260101-120000",
    "boundgraph evaluate runs/x --method ibp,crown --assert-certified 0.84",
    "boundgraph evaluate model.py --weights net.pt --data mnist --eps 0.3",
)


def evaluate_command(
    target: Target,
    data: DataName = None,
    eps: Annotated[
        float | None, typer.Option("--eps", "-e", help="Radius.", show_default="0.1, or the run's")
    ] = None,
    method: Methods = "ibp",
    weights: Weights = None,
    clip: Clip = "0,1",
    norm: RunNorm = None,
    attack_steps: Annotated[int, typer.Option(help="PGD steps, 0 for no attack.")] = 40,
    restarts: Annotated[int, typer.Option(help="Random starts of PGD.")] = 1,
    limit: Limit = None,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 256,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = None,
    assert_certified: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Exit with 1 where the certified share is below this.",
            show_default=False,
        ),
    ] = None,
    rounding: Rounding = "nearest",
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Measure clean, attacked and certified accuracy on held-out images."""
    from boundgraph.cli._results import evaluate_on, print_evaluation
    from boundgraph.cli._subject import load_subject

    out = Output(as_json)
    set_threads(threads)
    check_device(device)
    subject = load_subject(target, data, weights, download=download, device=device)
    radius = eps
    if radius is None:
        radius = 0.1 if subject.config is None else float(subject.config["train"]["eps"])
    result = evaluate_on(
        subject.model,
        subject.data,
        radius,
        parse_methods(method),
        show=sys.stderr.isatty() and not as_json,
        clip=parse_clip(clip),
        norm=norm_for(norm, subject.config),
        attack_steps=attack_steps,
        restarts=restarts,
        limit=limit,
        batch_size=batch,
        seed=seed,
        rounding=rounding,
    )
    title = f"{target}, {subject.data.name}, ε = {radius}, {result.seconds:.1f} s"
    print_evaluation(out, result, title)
    failed = assert_certified is not None and result.certified < assert_certified
    if failed:
        out.say(
            f"Certified accuracy {result.certified:.2%} is below {assert_certified:.2%}.",
            style="bold red",
        )
    run_dir = None if subject.run is None else str(subject.run)
    out.finish({**result.as_dict(), "data": subject.data.name, "run_dir": run_dir})
    if failed:
        raise typer.Exit(1)
