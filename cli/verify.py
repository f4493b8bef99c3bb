"""`boundgraph verify`: prove that a property holds around an input, or break it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from boundgraph.cli._console import Output
from boundgraph.cli._options import (
    Download,
    Json,
    Norm,
    Rounding,
    Seed,
    Threads,
    Weights,
    examples,
    parse_clip,
    parse_methods,
    parse_norm,
    set_threads,
)
from boundgraph.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from boundgraph.domains.regions import Box, LinfBall
    from boundgraph.verification import Verdict

EXAMPLES = examples(
    "boundgraph verify model.py --eps 0.01 --label 3",
    "boundgraph verify model.py --eps 0.01 --spec spec.json --counterexample broken.pt",
    "boundgraph verify model.py --eps 0.01 --certificate proof.json",
    "boundgraph verify runs/20260101-120000 --eps 0.1 --index 0 --limit 10 --timeout 20",
)
STYLES = {"proved": "bold green", "refuted": "bold red", "unknown": "bold yellow"}


def verify_command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL.py[:NAME]|RUN_DIR",
            help="A model file, or a run folder of `boundgraph train`.",
            show_default=False,
        ),
    ],
    eps: Annotated[float, typer.Option("--eps", "-e", help="Radius, in units of the input.")],
    label: Annotated[
        int | None,
        typer.Option(
            help="The class that must win, for every sample.", show_default="what the model says"
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="One class per sample, with commas.", show_default=False)
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option(help="A JSON file with linear constraints instead of a class."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Verify held-out images of digits, mnist, cifar10, PATH.npz or a folder, with "
            "their labels.",
            show_default="the file's example_input, or the run's data",
        ),
    ] = None,
    index: Annotated[int, typer.Option(help="First held-out image.")] = 0,
    limit: Annotated[int, typer.Option(help="How many held-out images.")] = 1,
    weights: Weights = None,
    clip: Annotated[
        str | None,
        typer.Option(
            "--clip",
            help="Range of valid inputs as LOW,HIGH; or none.",
            show_default="0,1 for images, else none",
        ),
    ] = None,
    norm: Norm = "inf",
    timeout: Annotated[float, typer.Option(help="Seconds for each sample.")] = 60.0,
    max_memory: Annotated[
        int | None, typer.Option(help="Bytes that bounds may take.", show_default="2 GiB")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "-m",
            help="Bound methods with commas, cheapest first.",
            show_default="ibp,crown-ibp,crown,alpha-crown",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Gradient steps of each search.")] = 20,
    restarts: Annotated[int, typer.Option(help="Starts of the search.")] = 3,
    counterexample: Annotated[
        Path | None, typer.Option(help="Save counterexamples here (torch.load).")
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=EPS",
            help="Prove it for all values of this parameter within EPS of its own; repeat it for "
            "several.",
            show_default=False,
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            help="Write a certificate of the proof here, for `boundgraph check`; with several "
            "samples NAME-0.json, NAME-1.json, …"
        ),
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
    rounding: Rounding = "nearest",
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Prove that the class (or a spec) holds for every input within EPS, or refute it.

    Exits with 0 where all samples are proved (and, with --certificate, certified), 1 where
    one is refuted, unknown or has no certificate.
    """
    from boundgraph.domains.regions import ball
    from boundgraph.verification import Attack, verify

    out = Output(as_json)
    set_threads(threads)
    model, inputs, truth = _subject(target, data, weights, index, limit, download)
    images = truth is not None
    limits = parse_clip(clip if clip is not None else "0,1" if images else "none")
    p = parse_norm(norm)
    regions = [ball(x, eps, p, limits) if x.is_floating_point() else x for x in inputs]
    chosen, wanted = _property(model, inputs, spec, _labels(label, labels, truth))
    found = verify(
        model,
        regions,
        chosen,
        labels=wanted,
        timeout=timeout,
        max_memory=max_memory,
        methods=None if method is None else parse_methods(method),
        attack=Attack(steps=steps, restarts=restarts),
        seed=seed,
        progress=sys.stderr.isatty() and not as_json,
        certificate=certificate is not None,
        rounding=rounding,
        parameters=_weights(model, weight or []),
    )
    verdicts = found if isinstance(found, list) else [found]
    for sample, verdict in enumerate(verdicts):
        name = f"sample {sample}: " if len(verdicts) > 1 else ""
        out.say(f"{name}{verdict} ({verdict.seconds:.1f} s)", style=STYLES[verdict.name])
    saved = _save(counterexample, verdicts)
    if saved:
        out.say(f"{saved} counterexample(s) saved to {counterexample}")
    proved = all(verdict.name == "proved" for verdict in verdicts)
    written = _save_certificates(out, certificate, verdicts)
    given = None if wanted is None else wanted.tolist()
    out.finish(
        {
            "proved": proved,
            "rounding": rounding,
            "eps": eps,
            "labels": given,
            "verdicts": [_as_dict(verdict) for verdict in verdicts],
            "counterexample": str(counterexample) if saved else None,
            "certificates": written,
        }
    )
    if not proved or (certificate is not None and None in written):
        raise typer.Exit(1)


def _weights(model: nn.Module, texts: list[str]) -> dict[str, Box | LinfBall]:
    """Regions of parameters from NAME=EPS."""
    from boundgraph.domains.regions import LinfBall

    known = dict(model.named_parameters())
    found: dict[str, Box | LinfBall] = {}
    for text in texts:
        name, _, radius = text.partition("=")
        try:
            eps = float(radius)
        except ValueError:
            raise ConfigError(f"--weight must be NAME=EPS, got {text!r}") from None
        if name not in known:
            some = ", ".join(list(known)[:8])
            raise ConfigError(f"--weight: no parameter {name!r}; there are {some}")
        found[name] = LinfBall(known[name].detach(), eps)
    return found


def _subject(
    target: str, data: str | None, weights: Path | None, index: int, limit: int, download: bool
) -> tuple[nn.Module, tuple[Tensor, ...], Tensor | None]:
    """The model, its inputs, and the labels of images from a data set."""
    from boundgraph.cli._model_file import load_model_file
    from boundgraph.cli._subject import load_subject, load_weights

    if data is None and not Path(target).is_dir():
        loaded = load_model_file(target)
        if weights is not None:
            load_weights(loaded.model, weights)
        return loaded.model, loaded.inputs, None
    subject = load_subject(target, data, weights, download=download)
    count = len(subject.data.x_test)
    if not 0 <= index < count or limit < 1:
        raise ConfigError(
            f"--index {index} --limit {limit} selects no image: {subject.data.name} has {count:,}"
        )
    at = slice(index, index + limit)
    device = next((p.device for p in subject.model.parameters()), None)
    x, y = subject.data.x_test[at].to(device), subject.data.y_test[at]
    return subject.model, (x,), y


def _labels(label: int | None, labels: str | None, truth: Tensor | None) -> Tensor | None:
    """The classes asked for; None leaves them to the model."""
    import torch

    if label is not None and labels is not None:
        raise ConfigError("--label and --labels exclude each other")
    if label is not None:
        return torch.tensor(label)
    if labels is None:
        return truth
    try:
        return torch.tensor([int(part) for part in labels.split(",")])
    except ValueError as error:
        raise ConfigError(f"--labels must be integers with commas, got {labels!r}") from error


def _property(
    model: nn.Module, inputs: tuple[Tensor, ...], spec: Path | None, labels: Tensor | None
) -> tuple[Any, Tensor | None]:
    """What to verify, and the labels where it is a class."""
    import torch

    from boundgraph.domains.specs import Margin
    from boundgraph.errors import SpecError
    from boundgraph.verification.spec_file import load_spec

    if spec is not None:
        return load_spec(spec), None
    with torch.no_grad():
        logits = model(*inputs)
    if not hasattr(logits, "dim") or logits.dim() != 2:
        raise SpecError(
            "the model does not return logits [batch, classes]; say what to verify with --spec"
        )
    if labels is None:
        labels = logits.argmax(1).cpu()
    if labels.dim() == 0:
        labels = labels.expand(len(logits)).clone()
    return Margin(logits.shape[1]), labels


def _save(path: Path | None, verdicts: list[Verdict]) -> int:
    """Write the counterexamples; how many there were."""
    import torch

    from boundgraph.verification import Refuted

    found = [
        {
            "sample": sample,
            "inputs": tuple(tensor.cpu() for tensor in verdict.counterexample),
            "output": verdict.output.cpu(),
            "violated": verdict.violated,
        }
        for sample, verdict in enumerate(verdicts)
        if isinstance(verdict, Refuted)
    ]
    if path is None or not found:
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"counterexamples": found}, path)
    return len(found)


def _save_certificates(out: Output, path: Path | None, verdicts: list[Verdict]) -> list[str | None]:
    """Write one certificate for each proved sample; where each went."""
    from boundgraph.verification import Proved

    if path is None:
        return []
    written: list[str | None] = []
    for sample, verdict in enumerate(verdicts):
        made = verdict.certificate if isinstance(verdict, Proved) else None
        if isinstance(verdict, Proved) and made is None:
            out.say(f"sample {sample}: {verdict.uncertified}", style="bold yellow")
        where = path if len(verdicts) == 1 else path.with_stem(f"{path.stem}-{sample}")
        written.append(str(made.save(where)) if made is not None else None)
        if made is not None:
            out.say(f"certificate written to {where}; check it with `boundgraph check {where}`")
    return written


def _as_dict(verdict: Verdict) -> dict[str, Any]:
    from boundgraph.verification import Proved, Refuted

    data: dict[str, Any] = {"verdict": verdict.name, "seconds": verdict.seconds}
    if isinstance(verdict, Proved):
        return {**data, "method": verdict.method, "margin": verdict.margin}
    if isinstance(verdict, Refuted):
        return {
            **data,
            "violated": verdict.violated,
            "values": list(verdict.values),
            "output": verdict.output.reshape(-1).tolist(),
        }
    return {
        **data,
        "reason": verdict.reason,
        "cause": verdict.cause,
        "undecided": len(verdict.undecided),
        "clauses": len(verdict.clauses.clauses),
        "methods": list(verdict.methods),
        "lower": verdict.lower.tolist(),
    }
