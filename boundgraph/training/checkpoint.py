"""Checkpoints that survive a kill, a full disk and a flipped bit.

A checkpoint is an ordinary `torch.save` file that `torch.load(weights_only=True)` reads.
Its zip comment holds a SHA-256 of everything before it, because torch does not check the
archive's own checksums. It is written beside the old one, flushed to the disk and moved
into place, so that at every moment one whole checkpoint exists.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from boundgraph.errors import CheckpointError

FORMAT = "boundgraph.checkpoint.1"
_LABEL = b"boundgraph sha256 "
_COMMENT_LENGTH = len(_LABEL) + 64
# The record that ends a zip archive; its last two bytes are the length of the comment.
_END, _END_LENGTH = b"PK\x05\x06", 22


def save_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a checkpoint, or leave the one that is there untouched.

    Args:
        path: where it goes; the folder must exist.
        state: tensors, numbers, strings, and dicts, lists and tuples of them.

    Raises:
        CheckpointError: the disk is full or cannot be written; the old file survives.
    """
    path = Path(path)
    # Into memory first: torch reports a full disk as a RuntimeError of its zip writer.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    data = _signed(buffer.getvalue())
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            write_bytes(temporary, data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(path.parent)
    except OSError as error:
        raise CheckpointError(_write_failure(path, error, len(data))) from error


def load_checkpoint(
    path: str | os.PathLike[str], *, map_location: str | torch.device = "cpu"
) -> dict[str, Any]:
    """Read a checkpoint that `save_checkpoint` wrote.

    Raises:
        CheckpointError: the file is missing, truncated, altered or not one of ours.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    _check_signature(path, data)
    try:
        state = torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
    except Exception as error:
        # torch raises a dozen kinds here; with the checksum right it is the content's fault.
        raise CheckpointError(f"checkpoint {path} cannot be decoded: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(
            f"checkpoint {path} has format {found!r}; this version reads {FORMAT!r}"
        )
    return state


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether a file ends as our checkpoints do; says nothing about its content.

    Raises:
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _COMMENT_LENGTH))
        return file.read().startswith(_LABEL)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file and flush it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _signed(data: bytes) -> bytes:
    comment = _LABEL + hashlib.sha256(data).hexdigest().encode()
    return data[:-2] + len(comment).to_bytes(2, "little") + comment


def _check_signature(path: Path, data: bytes) -> None:
    advice = (
        "Restore it from a copy, or train again in another folder (--run-dir) or from the start "
        "(--no-resume)"
    )
    comment = data[-_COMMENT_LENGTH:]
    end = data[-_COMMENT_LENGTH - _END_LENGTH : -_COMMENT_LENGTH]
    if not comment.startswith(_LABEL) or not end.startswith(_END):
        raise CheckpointError(
            f"checkpoint {path} is corrupt: {len(data):,} bytes that do not end as a checkpoint "
            f"does. It is truncated or was written by another program. {advice}"
        )
    body = data[: -_COMMENT_LENGTH - 2] + b"\0\0"
    if _signed(body) != data:
        raise CheckpointError(
            f"checkpoint {path} is corrupt: its content does not match its checksum. {advice}"
        )


def _flush_folder(folder: Path) -> None:
    """Make a rename durable. Windows cannot open folders and needs no such flush."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_failure(path: Path, error: OSError, size: int) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = f"the disk is full ({size / 1e6:.1f} MB were needed)" if full else str(error)
    old = (
        "The previous checkpoint is untouched: make room and run the same command again to "
        "continue from it"
        if path.is_file()
        else "No earlier checkpoint exists"
    )
    return f"checkpoint {path} could not be written: {what}. {old}"
