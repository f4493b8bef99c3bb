"""The metrics file: one JSON object a line, one line an epoch, on the disk at once."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from boundgraph.errors import DataError

Record = dict[str, Any]


class MetricsFile(AbstractContextManager["MetricsFile"]):
    """Appends records to a JSON Lines file.

    Args:
        path: the file.
        keep: number of leading records to keep of a file that exists. A killed run may
            have written records that are later than its checkpoint, or half a line; those
            are cut off, so that a resumed run's file equals an unbroken run's.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int = 0) -> None:
        self.path = Path(path)
        kept = read_metrics(self.path)[:keep] if self.path.is_file() and keep else []
        self._file = self.path.open("w", encoding="utf-8")
        for record in kept:
            self._append(record)
        self._flush()

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one record and flush it to the disk; numbers must be finite."""
        self._append(record)
        self._flush()

    def _append(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(dict(record), allow_nan=False) + "\n")

    def _flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(path: str | os.PathLike[str]) -> list[Record]:
    """The records of a metrics file; an unfinished last line is left out.

    Raises:
        DataError: a line other than the last is not a JSON object.
    """
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"expected an object, found {type(record).__name__}")
        except ValueError as error:
            if number == len(lines):
                break
            raise DataError(f"metrics file {path}, line {number}: {error}") from error
        records.append(record)
    return records


def finite(record: Mapping[str, Any]) -> Record:
    """The record with NaN and infinities as None, for JSON."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
