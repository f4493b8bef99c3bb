"""What the commands print, and how: tables for people, one JSON object for machines."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WIDE_TERMINAL = 160
PIPE_WIDTH = 110


class Output:
    """Prints for people, or stays silent and prints one JSON object at the end.

    Args:
        as_json: for machines.
    """

    def __init__(self, as_json: bool) -> None:
        from rich.console import Console

        self.as_json = as_json
        terminal = sys.stdout.isatty()
        width = min(shutil.get_terminal_size().columns, WIDE_TERMINAL) if terminal else PIPE_WIDTH
        self._console = Console(width=width, quiet=as_json, highlight=False)

    def say(self, text: str = "", style: str | None = None) -> None:
        """A line for people; no markup is read from it."""
        self._console.print(text, style=style, markup=False, soft_wrap=True)

    def code(self, text: str) -> None:
        """Lines to copy."""
        self._console.print(
            "\n".join(f"  {line}" for line in text.splitlines()),
            style="cyan",
            markup=False,
            soft_wrap=True,
        )

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Iterable[Sequence[Any]],
        *,
        right: Iterable[int] = (),
        caption: str | None = None,
    ) -> None:
        """A table; `right` are the columns to align on the right."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=title,
            caption=caption,
            box=box.SIMPLE_HEAD,
            title_justify="left",
            caption_justify="left",
            title_style="bold",
        )
        aligned = set(right)
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index in aligned else "left")
        for row in rows:
            table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
        self._console.print(table)

    def finish(self, data: Mapping[str, Any]) -> None:
        """End a command: for machines, print the object as the last line."""
        if self.as_json:
            print(json.dumps(plain(data), allow_nan=False), flush=True)


def plain(value: Any) -> Any:
    """Data that JSON can hold; what is not finite becomes a string."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def print_error(error: BaseException, as_json: bool) -> None:
    """An error for people on stderr and, where asked for, as JSON on stdout."""
    from rich.console import Console
    from rich.text import Text

    from boundgraph.errors import BoundGraphError, InternalError, SoundnessError

    foreseen = isinstance(error, BoundGraphError)
    ours = not foreseen or isinstance(error, InternalError | SoundnessError)
    head = "bug in BoundGraph: " if ours else "error: "
    kind = "" if foreseen else f"{type(error).__name__}: "
    text = Text.assemble((head, "bold red"), kind, str(error))
    for note in getattr(error, "__notes__", ()):
        text.append(f"\n{note}")
    if ours:
        text.append(
            "\nThis is our fault, not yours. Please report it with the command and the traceback "
            "that --debug shows."
        )
    Console(stderr=True, highlight=False, soft_wrap=True).print(text)
    if as_json:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}), flush=True)


def number(value: float) -> str:
    """A count in short: 1.2 k, 3.4 M."""
    for factor, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:g}"
