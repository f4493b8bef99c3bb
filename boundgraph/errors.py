"""Every error BoundGraph raises on purpose, and how it is worded.

A message says what is wrong, where (the user's own file and line, where there is
one) and what to do about it. Errors that can have several causes at once collect
all of them as `Diagnostic`s before they are raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from boundgraph.source import SourceSpan


@dataclass(frozen=True)
class Diagnostic:
    """One thing that is wrong, where it is, and a way out."""

    message: str
    span: SourceSpan | None = None
    help: str | None = None

    def __str__(self) -> str:
        lines = [self.message]
        if self.span is not None:
            lines.append(f"  --> {self.span.where()}")
            if self.span.text:
                lines.append(f"      {self.span.text}")
        if self.help:
            lines.append(f"  help: {self.help}")
        return "\n".join(lines)


class BoundGraphError(Exception):
    """The root of all errors raised on purpose by BoundGraph."""


class DiagnosticError(BoundGraphError):
    """An error made of one or more diagnostics; all of them are shown."""

    def __init__(self, diagnostics: Sequence[Diagnostic] | Diagnostic | str) -> None:
        if isinstance(diagnostics, str):
            diagnostics = (Diagnostic(diagnostics),)
        elif isinstance(diagnostics, Diagnostic):
            diagnostics = (diagnostics,)
        self.diagnostics: tuple[Diagnostic, ...] = tuple(diagnostics)
        super().__init__("\n".join(str(item) for item in self.diagnostics))


class CaptureError(DiagnosticError):
    """The model could not be turned into a program by any frontend."""


class UnsupportedError(DiagnosticError):
    """The model uses something that the asked-for bound method cannot bound soundly."""


class RegionError(BoundGraphError, ValueError):
    """A region is malformed or does not fit the model (shape, order, NaN, ε < 0)."""


class SpecError(BoundGraphError, ValueError):
    """A specification or its labels do not fit the model's output."""


class NonFiniteError(BoundGraphError, ValueError):
    """NaN or infinity where a sound bound cannot exist: weights, inputs or a result."""


class ConfigError(BoundGraphError, ValueError):
    """An option has a value that it cannot have."""


class MemoryBudgetError(ConfigError):
    """The smallest piece of work takes more than `max_memory`."""


class OutOfTimeError(BoundGraphError):
    """The time that a caller allowed is over; nothing is known from what was left undone."""


class DataError(BoundGraphError, ValueError):
    """A data set or loader is empty, malformed or absent."""


class ModelFileError(DiagnosticError):
    """A model file given to the command line cannot be used."""


class CheckpointError(BoundGraphError):
    """A checkpoint or saved program is missing, truncated, altered or could not be written."""


class CertificateError(BoundGraphError):
    """A certificate is missing, or none could be made."""


class GpuReportError(BoundGraphError):
    """Code for a GPU cannot be generated or examined here; says what is missing."""


class SoundnessError(BoundGraphError):
    """A certified result contradicts a concrete run: a bug in BoundGraph, never ignored."""


class InternalError(BoundGraphError):
    """An invariant of BoundGraph itself is broken; please report it with the program shown."""


class VerifyError(InternalError):
    """A program breaks a rule of its stage."""


class ParseError(BoundGraphError, ValueError):
    """Program text that the parser cannot read; carries the line number."""
