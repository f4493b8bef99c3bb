"""Metrics for TensorBoard, where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TAGS = {
    "loss": "loss/mixed",
    "clean_loss": "loss/clean",
    "bound_loss": "loss/bound",
    "clean_accuracy": "accuracy/clean_training",
    "certified_accuracy": "accuracy/certified_training",
    "test_clean": "accuracy/clean_held_out",
    "test_certified": "accuracy/certified_held_out",
    "eps": "schedule/eps",
    "alpha": "schedule/alpha",
    "lr": "schedule/lr",
    "grad_norm": "gradient/norm",
}


class Board:
    """Writes epoch records as event files.

    Args:
        folder: where the event files go.
        purge_from: epochs from this one on, left by a killed run, are hidden.
    """

    def __init__(self, folder: Path, purge_from: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=purge_from)

    def write(self, record: Mapping[str, Any]) -> None:
        for key, tag in TAGS.items():
            if record.get(key) is not None:
                self._writer.add_scalar(tag, record[key], record["epoch"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def open_board(folder: Path, purge_from: int) -> Board | None:
    """A board in the run folder's `tensorboard`, None where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    return Board(folder / "tensorboard", purge_from)
