"""Find the user's line for a captured operation."""

from __future__ import annotations

import functools
import linecache
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)(?:, in (?P<function>\S+))?')


@dataclass(frozen=True)
class SourceSpan:
    """A line of somebody's source, and the path of the module it ran in.

    Args:
        file: path of the source file.
        line: one-based line number, 0 where unknown.
        text: the stripped source line, empty where unknown.
        module: dotted path of the `nn.Module` that was running, e.g. `"layer1.0.conv1"`.
    """

    file: str
    line: int
    text: str = ""
    module: str = ""

    def where(self) -> str:
        place = [f"{self.file}:{self.line}"] if self.file else []
        if self.module:
            place.append(f"in module {self.module!r}")
        return ", ".join(place) or "<unknown>"


def _library_roots() -> tuple[str, ...]:
    """Folders whose frames are never the user's: ours and torch's."""
    torch = sys.modules.get("torch")
    return _roots(torch.__file__ if torch is not None else None)


@functools.cache
def _roots(torch_file: str | None) -> tuple[str, ...]:
    ours = Path(__file__).resolve().parent
    roots = [ours, *(ours.parent / name for name in ("passes", "frontends", "cli"))]
    if torch_file:
        roots.append(Path(torch_file).resolve().parent)
    return tuple(f"{root}{os.sep}" for root in roots)


@functools.lru_cache(maxsize=1024)
def _resolved(file: str) -> str:
    # A stack trace has dozens of frames in few files, and resolving asks the file system.
    return str(Path(file).resolve())


def is_library(file: str) -> bool:
    """Whether a frame's file is torch's, ours or generated code, and so never the user's."""
    return file.startswith("<") or _resolved(file).startswith(_library_roots())


def user_span(stack_trace: str | None, module: str = "") -> SourceSpan | None:
    """The innermost frame of a stack trace that is neither torch's nor ours.

    Args:
        stack_trace: text as `fx.Node.stack_trace` holds it, innermost frame last.
        module: dotted module path to attach.

    Returns:
        The span, or a span without a file when only the module path is known,
        or None when nothing is known.
    """
    for match in reversed(list(_FRAME.finditer(stack_trace or ""))):
        file = match["file"]
        if is_library(file):
            continue
        line = int(match["line"])
        return SourceSpan(file, line, linecache.getline(file, line).strip(), module)
    return SourceSpan("", 0, "", module) if module else None
