"""What a person sees while a run is going on: one line an epoch, and a bar below on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

HEADER = (
    "  epoch        ε      α    loss   clean   worst    training         held out        left\n"
    "                                                  clean    cert.   clean    cert."
)


def epoch_line(record: Mapping[str, Any], left: float) -> str:
    """One epoch's record under `HEADER`; `left` is in seconds."""

    def share(key: str) -> str:
        value = record.get(key)
        return f"{value:6.1%}" if value is not None else "     –"

    return (
        f"{record['epoch']:4d}/{record['epochs']:<4d} {record['eps']:7.4f}  {record['alpha']:.2f} "
        f"{record['loss']:7.3f} {record['clean_loss']:7.3f} {record['bound_loss']:7.3f}   "
        f"{share('clean_accuracy')}  {share('certified_accuracy')}  "
        f"{share('test_clean')}  {share('test_certified')}  {duration(left):>8}"
    )


def duration(seconds: float) -> str:
    """Seconds as a person writes them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d}" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d}"


class Progress(AbstractContextManager["Progress"]):
    """Says nothing: the base of what shows a run's progress."""

    def start(self, done: int, total: int) -> None:
        """The run begins with `done` of `total` steps behind it."""

    def step(self) -> None:
        """One step was made."""

    def epoch(self, record: Mapping[str, Any], left: float) -> None:
        """An epoch is over."""

    def note(self, text: str) -> None:
        """Something a person should know."""

    def close(self) -> None:
        """The run is over, or stopped."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Lines(Progress):
    """Plain lines on stderr, for log files."""

    def __init__(self) -> None:
        self._headed = False

    def epoch(self, record: Mapping[str, Any], left: float) -> None:
        if not self._headed:
            self.note(HEADER)
            self._headed = True
        self.note(epoch_line(record, left))

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Bar(Lines):
    """Lines above a bar on the terminal."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("  training"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        self._task = self._bar.add_task("training", total=None)

    def start(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)
        self._bar.start()

    def step(self) -> None:
        self._bar.advance(self._task)

    def note(self, text: str) -> None:
        self._bar.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()


def make_progress(show: bool | None) -> Progress:
    """Bar on a terminal, lines elsewhere; `show` False for silence, None for a terminal only."""
    terminal = sys.stderr.isatty()
    if show is False or (show is None and not terminal):
        return Progress()
    return Bar() if terminal else Lines()
