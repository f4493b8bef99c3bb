"""The command line: one module per command, and how errors are shown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from boundgraph.cli import attack, bounds, check, compile, evaluate, ops, show, train, verify

EPILOG = (
    "Start with [bold]boundgraph train[/bold] (about a minute on a CPU), or with "
    "[bold]boundgraph compile model.py[/bold] for a model of your own."
)

app = typer.Typer(
    name="boundgraph",
    help="Compile PyTorch networks into programs that bound their outputs, and train with them.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)


def _version(wanted: bool) -> None:
    if wanted:
        from boundgraph import __version__

        typer.echo(f"boundgraph {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; works after any command.")
    ] = False,
) -> None:
    """Options of all commands."""


for module in (compile, bounds, show, ops, train, evaluate, attack, verify, check):
    name = module.__name__.rpartition(".")[2]
    app.command(name, epilog=module.EXAMPLES)(getattr(module, f"{name}_command"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 not certified where asked to assert, 2 an error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        app(args=given, prog_name="boundgraph")
    except Exception as error:
        if debug:
            raise
        from boundgraph.cli._console import print_error

        print_error(error, "--json" in given)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
