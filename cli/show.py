"""`boundgraph show`: the program after each pass, as text or as a picture."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from boundgraph.cli._console import Output
from boundgraph.cli._options import Json, Method, ModelFile, examples

if TYPE_CHECKING:
    from boundgraph.ir.program import Program
    from boundgraph.passes import PassRecord

EXAMPLES = examples(
    "boundgraph show model.py",
    "boundgraph show model.py --pass fold-spec",
    "boundgraph show model.py --format svg -o model.svg",
)


class Format(StrEnum):
    """How to show a program."""

    text = "text"
    dot = "dot"
    svg = "svg"
    graphml = "graphml"


def show_command(
    model: ModelFile,
    after: Annotated[
        str | None,
        typer.Option("--pass", help="Only the program after this pass.", show_default="all"),
    ] = None,
    method: Method = "ibp",
    margin: Annotated[
        bool, typer.Option("--margin", help="Bound the margins of a label, not the logits.")
    ] = False,
    format: Annotated[
        Format, typer.Option("--format", "-f", help="Pictures show the last program.")
    ] = Format.text,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the program after each pass, or draw it."""
    from boundgraph.cli._model_file import load_model_file
    from boundgraph.cli.compile import compile_loaded
    from boundgraph.errors import ConfigError

    out = Output(as_json)
    records = compile_loaded(load_model_file(model), method, margin=margin).records
    chosen = _choose(records, after)
    if format is Format.graphml and output is None:
        raise ConfigError("GraphML is written to a file: give one with -o FILE")
    content = ""
    if format is Format.text:
        content = "\n".join(_text(record) for record in chosen)
    elif format is not Format.graphml:
        content = _draw(chosen[-1].program, format)
    if output is None and not as_json:
        typer.echo(content)
    elif output is not None:
        _write(output, content, chosen[-1].program, format)
        out.say(f"Written to {output}.")
    out.finish(
        {
            "format": str(format),
            "output": None if output is None else str(output),
            "passes": [{"name": record.name, "text": record.text} for record in chosen],
        }
    )


def _choose(records: tuple[PassRecord, ...], name: str | None) -> list[PassRecord]:
    """All records, or the last one of the pass asked for."""
    from boundgraph.errors import ConfigError

    if name is None:
        return list(records)
    found = [record for record in records if name in (record.name, record.name.partition("{")[0])]
    if not found:
        names = ", ".join(dict.fromkeys(record.name.partition("{")[0] for record in records))
        raise ConfigError(f"no pass {name!r} for this method; the passes are {names}")
    return found[-1:]


def _text(record: PassRecord) -> str:
    change = f"{record.nodes_before} → {record.nodes_after} nodes, {record.milliseconds:.1f} ms"
    return f"// after {record.name}: {change}\n{record.text.rstrip()}\n"


def _draw(program: Program, format: Format) -> str:
    from boundgraph.ir.analysis import to_dot, to_svg

    return to_dot(program) if format is Format.dot else to_svg(program)


def _write(path: Path, content: str, program: Program, format: Format) -> None:
    from boundgraph.errors import ConfigError
    from boundgraph.ir.analysis import to_graphml

    try:
        if format is Format.graphml:
            to_graphml(program, path)
        else:
            path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
