"""Files of plain state that survive a kill, a full disk and a flipped bit.

A file is a `torch.save` of the payload's bytes and their SHA-256, so that
`torch.load(weights_only=True)` reads it and nothing in it can run code. It is written
beside the old one, flushed and moved into place.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from boundgraph.errors import CheckpointError


def write_archive(path: str | os.PathLike[str], kind: str, state: Mapping[str, Any]) -> None:
    """Write state, or leave the file that is there untouched.

    Args:
        path: where it goes; the folder must exist.
        kind: what the file is, checked when it is read.
        state: tensors, numbers, strings, and dicts, lists and tuples of them.

    Raises:
        CheckpointError: the file cannot be written; an old one survives.
    """
    inner, outer = io.BytesIO(), io.BytesIO()
    torch.save(dict(state), inner)
    payload = inner.getvalue()
    digest = hashlib.sha256(payload).hexdigest()
    torch.save({"kind": kind, "sha256": digest, "payload": _to_tensor(payload)}, outer)
    path = Path(path)
    try:
        _replace(path, outer.getvalue())
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be written: {error}. A file that was there before is unchanged"
        ) from error


def read_archive(
    path: str | os.PathLike[str], kind: str, map_location: str | torch.device = "cpu"
) -> dict[str, Any]:
    """Read what `write_archive` wrote.

    Raises:
        CheckpointError: the file is missing, truncated, altered or of another kind.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    outer = _decode(path, data)
    if not isinstance(outer, dict) or outer.get("kind") != kind:
        found = outer.get("kind") if isinstance(outer, dict) else None
        raise CheckpointError(
            f"{path} is not a {kind} file" + (f" but a {found} file" if found else "")
        )
    payload = outer.get("payload")
    if not isinstance(payload, torch.Tensor) or payload.dtype != torch.uint8:
        raise CheckpointError(f"{path} is corrupt: it has no payload")
    content = payload.numpy().tobytes()
    if hashlib.sha256(content).hexdigest() != outer.get("sha256"):
        raise CheckpointError(f"{path} is corrupt: its content does not match its checksum")
    state = _decode(path, content, map_location)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is corrupt: its payload is {type(state).__name__}")
    return state


def _to_tensor(payload: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8)


def _decode(
    path: str | os.PathLike[str], data: bytes, map_location: str | torch.device = "cpu"
) -> Any:
    try:
        return torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
    except Exception as error:
        # torch raises a dozen kinds here (zip, pickle, EOF, attribute, value errors).
        raise CheckpointError(f"{path} is corrupt or was written by another program") from error


def _replace(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
