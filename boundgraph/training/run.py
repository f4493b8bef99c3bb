"""A run folder: everything one training run leaves behind, and what it takes to continue it."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from boundgraph.errors import ConfigError
from boundgraph.training.checkpoint import write_bytes

CONFIG, METRICS, CHECKPOINT = "config.json", "metrics.jsonl", "checkpoint.pt"
RESULT, CURVES, REPORT = "result.json", "curves.png", "report.html"
# Parts of a configuration that decide what a run computes; the rest is a record.
IDENTITY = ("train", "data", "model")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run folder's files, and reading and writing of the small ones."""

    path: Path

    @property
    def config_path(self) -> Path:
        return self.path / CONFIG

    @property
    def metrics_path(self) -> Path:
        return self.path / METRICS

    @property
    def checkpoint_path(self) -> Path:
        return self.path / CHECKPOINT

    @property
    def result_path(self) -> Path:
        return self.path / RESULT

    @property
    def curves_path(self) -> Path:
        return self.path / CURVES

    @property
    def report_path(self) -> Path:
        return self.path / REPORT

    def config(self) -> dict[str, Any]:
        """The configuration.

        Raises:
            ConfigError: there is none, or it is not JSON.
        """
        return _read_json(self.config_path)

    def result(self) -> dict[str, Any] | None:
        """The final evaluation, None where the run was not evaluated yet."""
        return _read_json(self.result_path) if self.result_path.is_file() else None

    def write_result(self, result: Mapping[str, Any]) -> None:
        write_json(self.result_path, result)


def open_run(
    path: str | Path | None, config: Mapping[str, Any], *, resume: bool = True
) -> RunFolder:
    """Make a run folder, or open one to continue.

    Args:
        path: the folder; None for a new `runs/DATE-TIME`.
        config: plain data; its parts `train`, `data` and `model` must equal those of the
            run that is continued.
        resume: continue the run in an existing folder; False starts it anew.

    Raises:
        ConfigError: the folder holds another run, or something else.
    """
    folder = RunFolder(Path(path) if path is not None else fresh_path())
    if folder.path.exists() and not folder.path.is_dir():
        raise ConfigError(f"run folder {folder.path} is a file; choose another --run-dir")
    folder.path.mkdir(parents=True, exist_ok=True)
    if not folder.config_path.is_file():
        strange = sorted(p.name for p in folder.path.iterdir() if not p.name.startswith("."))
        if strange:
            raise ConfigError(
                f"folder {folder.path} is not a run folder: it has no {CONFIG} but holds "
                f"{', '.join(strange[:5])}; choose an empty or a new one"
            )
    elif resume:
        _check_same_run(folder, config)
        return folder
    else:
        for old in (METRICS, CHECKPOINT, RESULT, CURVES, REPORT):
            (folder.path / old).unlink(missing_ok=True)
    record = {**config, "versions": versions(), "created": time.strftime("%Y-%m-%d %H:%M:%S")}
    write_json(folder.config_path, record)
    return folder


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON so that the file is whole at every moment."""
    temporary = path.with_name(f".{path.name}.tmp")
    write_bytes(temporary, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode())
    temporary.replace(path)


def versions() -> dict[str, str]:
    """Versions of what a run depends on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("boundgraph", "torchvision", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "platform": f"{platform.system()} {platform.machine()}"}


def command_line() -> str:
    """The command of this process, for the record."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def fresh_path() -> Path:
    """`runs/DATE-TIME`, with a number where that exists."""
    stem = Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    path, count = stem, 1
    while path.exists():
        count += 1
        path = stem.with_name(f"{stem.name}-{count}")
    return path


def _check_same_run(folder: RunFolder, config: Mapping[str, Any]) -> None:
    old = folder.config()
    changes = []
    for part in IDENTITY:
        # Through JSON, which turns tuples into lists, as the file did.
        new = _flat(json.loads(json.dumps(config.get(part))), part)
        before = _flat(old.get(part), part)
        changes += [
            f"{key}: {before.get(key)!r} there, {new.get(key)!r} now"
            for key in sorted({*before, *new})
            if before.get(key) != new.get(key)
        ]
    if changes:
        raise ConfigError(
            f"run folder {folder.path} holds a different run, which cannot be continued with "
            "these settings:\n  "
            + "\n  ".join(changes)
            + "\nUse another --run-dir, the old settings, or --no-resume to start it anew"
        )


def _flat(data: Any, prefix: str) -> dict[str, Any]:
    if isinstance(data, Mapping):
        return {
            key: value
            for name, part in data.items()
            for key, value in _flat(part, f"{prefix}.{name}").items()
        }
    return {prefix: data}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path.parent} is not a run folder: it has no {path.name}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}, not an object")
    return data
