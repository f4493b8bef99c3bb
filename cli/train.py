"""`boundgraph train`: train a network to be provably robust, evaluate it, leave a run folder."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from boundgraph.cli._console import Output
from boundgraph.cli._options import (
    Clip,
    Device,
    Download,
    Json,
    Norm,
    Seed,
    Threads,
    check_device,
    examples,
    parse_clip,
    parse_methods,
    parse_norm,
    set_threads,
    spare_threads,
)

if TYPE_CHECKING:
    from boundgraph.data import DataSet
    from boundgraph.training.fit import FitResult
    from boundgraph.training.recipes import Recipe

EXAMPLES = examples(
    "boundgraph train",
    "boundgraph train --data mnist --eps 0.3 --run-dir runs/mnist",
    "boundgraph train model.py --data images.npz --epochs 20",
    "torchrun --nproc-per-node 2 -m boundgraph.cli.main train --run-dir runs/two",
)
INTERRUPTED = 130


def train_command(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[NETWORK|MODEL.py[:NAME]]",
            help="tiny, small, large or a model file.",
            show_default="tiny or small, by image size",
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option(help="digits, mnist, cifar10, PATH.npz or a folder in ImageFolder layout."),
    ] = "digits",
    eps: Annotated[
        float, typer.Option("--eps", "-e", help="Radius to be robust for; pixels are in [0, 1].")
    ] = 0.1,
    recipe: Annotated[
        str, typer.Option(help="mixtrain, ibp, crown-ibp, pgd or standard.")
    ] = "mixtrain",
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data.", show_default="the recipe's")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Images per step.", show_default="the recipe's")
    ] = None,
    subset: Annotated[
        int | None,
        typer.Option(
            "--subset",
            "--k",
            help="Images per step whose bounds are trained.",
            show_default="the recipe's",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "-m",
            help="Bound method to train with: ibp, symbolic, mix …",
            show_default="the recipe's",
        ),
    ] = None,
    certify: Annotated[
        str | None,
        typer.Option(
            help="Bound methods of the final evaluation, e.g. ibp,crown.",
            show_default="the training method",
        ),
    ] = None,
    clip: Clip = "0,1",
    norm: Norm = "inf",
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir",
            help="Where to write; a run there is continued.",
            show_default="runs/DATE-TIME",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Continue the run in --run-dir, or not.")
    ] = True,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Use torch.compile for the training step.",
            show_default="where the run is long enough",
        ),
    ] = None,
    attack_steps: Annotated[int, typer.Option(help="PGD steps of the evaluation.")] = 40,
    restarts: Annotated[int, typer.Option(help="Random starts of PGD.")] = 1,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Train a network, by default on the digits inside the package in about a minute."""
    from boundgraph.cli._results import evaluate_on, print_evaluation, write_run
    from boundgraph.cli._subject import load_data, new_network
    from boundgraph.training.fit import fit
    from boundgraph.training.run import command_line, fresh_path

    out = Output(as_json or os.environ.get("RANK", "0") != "0")
    set_threads(threads)
    check_device(device)
    limits, p = parse_clip(clip), parse_norm(norm)
    images = load_data(data, download)
    chosen = _recipe(recipe, images, eps, epochs, batch, subset, method)
    network, identity = new_network(model, images, seed)
    folder = _folder(run_dir) or fresh_path()
    if threads is None:
        spare_threads(network, images.image_shape)
    _announce(out, images, network, identity, chosen, eps, folder)
    trained = fit(
        network,
        images,
        chosen,
        eps=eps,
        run_dir=folder,
        resume=resume,
        progress=False if out.as_json else (True if sys.stderr.isatty() else None),
        seed=seed,
        device=device,
        compile="auto" if compiled is None else compiled,
        clip=limits,
        norm=p,
        record={"model": identity, "data": {"source": data}, "command": command_line()},
    )
    if not trained.finished:
        raise typer.Exit(INTERRUPTED)
    if os.environ.get("RANK", "0") != "0" or trained.run is None:
        return
    methods = parse_methods(certify) if certify else (chosen.method,)
    out.say(f"Trained in {trained.seconds:.1f} s. Evaluating on the held-out images …")
    result = evaluate_on(
        trained.model,
        images,
        eps,
        methods,
        show=False,
        clip=limits,
        norm=p,
        attack_steps=attack_steps,
        restarts=restarts,
        seed=seed,
    )
    write_run(trained.run, trained.model, images, result, limits, p)
    print_evaluation(out, result, f"{images.name}, ε = {eps}, {result.n:,} held-out images")
    _usage(out, trained)
    out.finish(
        {
            **result.as_dict(),
            "seconds": trained.seconds,
            "evaluation_seconds": result.seconds,
            "epochs": len(trained.records),
            "recipe": chosen.name,
            "data": images.name,
            "seed": seed,
            "step": trained.compiled,
            "run_dir": str(trained.run.path),
        }
    )


def _recipe(
    name: str,
    data: DataSet,
    eps: float,
    epochs: int | None,
    batch: int | None,
    subset: int | None,
    method: str | None,
) -> Recipe:
    """The named recipe for this data, with what the user changed.

    Without --subset, a changed batch keeps the share of it that is bounded.
    """
    from boundgraph.training.recipes import get_recipe, preset_for

    base = get_recipe(name, preset_for(data.name, eps))
    changes: dict[str, Any] = {"epochs": epochs, "method": method, "subset": subset}
    if batch is not None:
        changes["batch_size"] = batch
        if subset is None and base.subset is not None:
            changes["subset"] = max(1, round(batch * base.subset / base.batch_size))
    return replace(base, **{key: value for key, value in changes.items() if value is not None})


def _folder(run_dir: Path | None) -> Path | None:
    from boundgraph.errors import ConfigError

    if run_dir is None and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("several processes need one folder: pass --run-dir")
    return run_dir


def _announce(
    out: Output,
    data: DataSet,
    network: Any,
    identity: dict[str, Any],
    recipe: Recipe,
    eps: float,
    folder: Path,
) -> None:
    name = identity.get("network") or f"{identity['file']}:{identity['name']}"
    count = sum(p.numel() for p in network.parameters())
    bounded = recipe.subset if recipe.subset is not None else recipe.batch_size
    detail = f"{recipe.epochs} epochs, batch {recipe.batch_size}"
    if recipe.loss == "mixed":
        detail += f", {bounded} of them bounded by {recipe.method}"
    out.say(data.summary())
    out.say(f"network {name}, {count:,} parameters")
    out.say(f"recipe  {recipe.name}, ε = {eps}, {detail}")
    out.say(f"folder  {folder}")
    out.say()


def _usage(out: Output, trained: FitResult) -> None:
    run = trained.run
    assert run is not None
    out.say("Everything about this run is in its folder:", style="bold")
    files = [run.report_path, run.checkpoint_path, run.metrics_path, run.curves_path]
    out.code("\n".join(str(path) for path in files if path.is_file()))
    out.say("Next:", style="bold")
    out.code(
        f"boundgraph evaluate {run.path} --method ibp,crown   # tighter bounds\n"
        f"boundgraph attack {run.path}                        # try to break it"
    )
