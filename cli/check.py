"""`boundgraph check`: prove a certificate again, independently of the compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from boundgraph.cli._console import Output
from boundgraph.cli._options import Json, Weights, examples

EXAMPLES = examples(
    "boundgraph verify model.py --eps 0.01 --certificate proof.json",
    "boundgraph check proof.json",
    "boundgraph check proof.json model.py",
)


def check_command(
    certificate: Annotated[
        Path,
        typer.Argument(metavar="CERTIFICATE.json", help="Of `boundgraph verify --certificate`."),
    ],
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL.py[:NAME]|RUN_DIR",
            help="Also require that this model is the one that was certified.",
            show_default=False,
        ),
    ] = None,
    weights: Weights = None,
    tensors: Annotated[
        Path | None,
        typer.Option(
            help="An .npz or .safetensors file with the certified weights.",
            show_default="the recorded one",
        ),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Rational arithmetic throughout (slow).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Prove a certificate again with numpy alone, not with what made it.

    Exits with 0 where it is accepted, 1 where it is rejected.
    """
    from boundgraph.verification import check_certificate

    out = Output(as_json)
    model = None
    if target is not None:
        from boundgraph.cli._model_file import load_model_file
        from boundgraph.cli._subject import load_subject, load_weights

        if Path(target).is_dir():
            model = load_subject(target, None, weights, download=False).model
        else:
            model = load_model_file(target, example=False).model
            if weights is not None:
                load_weights(model, weights)
    found = check_certificate(certificate, model, weights=tensors, exact=exact or None)
    if found:
        of_model = "" if target is None else f", and {target} is the model"
        out.say(f"accepted: {found.reason}{of_model}", style="bold green")
        out.say(
            f"smallest margin {min(found.margins):.9g} over {len(found.margins)} clauses; "
            f"{found.arithmetic} arithmetic, {found.seconds:.2f} s"
        )
    else:
        out.say(f"rejected: {found.reason}", style="bold red")
    out.finish(
        {
            "accepted": found.accepted,
            "reason": found.reason,
            "margins": list(found.margins),
            "arithmetic": found.arithmetic,
            "model_compared": target is not None,
            "seconds": found.seconds,
        }
    )
    if not found:
        raise typer.Exit(1)
