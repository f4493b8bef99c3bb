"""`fit`: a whole training run, with progress, metrics, checkpoints and exact resume."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from boundgraph.data import DataSet
from boundgraph.errors import ConfigError
from boundgraph.training._trainer import Trainer, TrainerOptions
from boundgraph.training.figures import save_png
from boundgraph.training.metrics import Record
from boundgraph.training.progress import Progress, make_progress
from boundgraph.training.recipes import Recipe, get_recipe, preset_for
from boundgraph.training.report import write_report
from boundgraph.training.run import RunFolder, open_run

OnEpoch = Callable[[Record], None]


@dataclass(frozen=True)
class FitResult:
    """What a run came to.

    Args:
        model: the trained model, with the weights to use (averaged, if the recipe says so).
        records: the metrics, one record an epoch, those of a continued run included.
        seconds: training time, that of a continued run included.
        run: the run folder, None where nothing was written.
        finished: False where the run was interrupted.
        continued_from: epochs that were done before this call.
        compiled: how the step ran: `"whole"`, `"loss"` or `"eager"`.
    """

    model: nn.Module
    records: list[Record]
    seconds: float
    run: RunFolder | None
    finished: bool
    continued_from: int
    compiled: str


def fit(
    model: nn.Module,
    data: DataSet,
    recipe: Recipe | str | None = None,
    *,
    eps: float = 0.1,
    run_dir: str | Path | None = None,
    resume: bool = True,
    on_epoch: OnEpoch | None = None,
    progress: Progress | bool | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    compile: Literal["auto"] | bool = "auto",
    amp: bool = False,
    clip: tuple[float, float] | None = (0.0, 1.0),
    norm: float = math.inf,
    validate: int = 1000,
    checkpoint_seconds: float = 15.0,
    record: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train a model to be provably robust.

    Everything random is a function of the seed, and a checkpoint holds the whole state of
    the run, so that a run that was killed and continued ends with the same weights, bit
    for bit, as one that was not, on the same machine with the same number of threads.

    Args:
        model: maps `[batch, channels, height, width]` to `[batch, classes]`; trained in
            place. Under `torchrun` it is wrapped in DistributedDataParallel inside.
        data: what to train on, and held-out images to watch.
        recipe: a `Recipe`, the name of one, or None for `mixtrain`; names are adapted to
            `data` and `eps` where a preset exists.
        eps: radius to train for, in units of the input.
        run_dir: folder for configuration, metrics, checkpoints, curves and report; None
            writes nothing.
        resume: continue the run in `run_dir` if there is one; False starts it anew.
        on_epoch: called with each epoch's record.
        progress: True for lines and a bar, None for both on a terminal only, False for
            silence.
        seed: of the order of the data, the samples bounded and the initialisation.
        device: where to train; None for where the model is.
        compile: compile the step with `torch.compile`. `"auto"` does so where the run is
            long enough to win back the 20 to 60 seconds that compiling takes.
        amp: compute the losses in bfloat16 where torch's autocast does. Held-out accuracy
            is certified in full precision.
        clip: range of valid inputs, None for no limit.
        norm: of the balls of radius `eps`: `math.inf`, 2, 1 or any p >= 1.
        validate: how many held-out images to measure after each epoch, 0 for none.
        checkpoint_seconds: time between checkpoints; one is also written at the end.
        record: further plain data for `config.json`; what it adds to the parts `model` and
            `data` must not differ when a run is continued.

    Raises:
        ConfigError: an option has a value it cannot have, or `run_dir` holds another run.
        DataError: the data is empty or does not fit the model.
        CaptureError, UnsupportedError: the model cannot be bounded.
        NonFiniteError: the run has diverged.
        CheckpointError: a checkpoint is corrupt or cannot be written.
    """
    recipe = _recipe(recipe, data, eps)
    seconds = checkpoint_seconds if run_dir is not None else None
    options = TrainerOptions(eps, seed, compile, amp, clip, validate, seconds, norm)
    model.to(device)
    trainer = Trainer(model, data, recipe, options)
    run = None
    if run_dir is not None:
        config = run_config(
            model, data, recipe, eps, seed, amp=amp, clip=clip, norm=norm, record=record
        )
        run = trainer.only_first(
            lambda: open_run(run_dir, config, resume=resume), RunFolder(Path(run_dir))
        )
        trainer.resume(run)
    shown = progress if isinstance(progress, Progress) else make_progress(progress)
    try:
        with shown if trainer.rank == 0 else Progress() as display:
            finished = trainer.train(display, on_epoch)
    finally:
        trainer.close()
    if run is not None and trainer.rank == 0:
        _draw(run, trainer.records)
    return FitResult(
        model,
        trainer.records,
        trainer.seconds,
        run,
        finished,
        trainer.continued_from,
        trainer.step.mode,
    )


def run_config(
    model: nn.Module,
    data: DataSet,
    recipe: Recipe,
    eps: float,
    seed: int,
    *,
    amp: bool = False,
    clip: tuple[float, float] | None = (0.0, 1.0),
    norm: float = math.inf,
    record: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The configuration of a run as plain data, for `config.json`."""
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    extra = dict(record or {})
    train = {"eps": eps, "seed": seed, "amp": amp, "clip": clip, "recipe": recipe.to_dict()}
    # JSON has no infinity, and boxes are what a run without the entry trained for.
    return {
        **extra,
        "train": train if norm == math.inf else {**train, "norm": norm},
        "data": {
            **extra.get("data", {}),
            "name": data.name,
            "summary": data.summary(),
            "image_shape": data.image_shape,
            "classes": data.classes,
            "fingerprint": _digest(
                data.y_train.numpy().tobytes() + data.x_train[:1000].numpy().tobytes()
            ),
        },
        "model": {
            "parameters": sum(p.numel() for p in model.parameters()),
            "fingerprint": _digest(json.dumps(shapes).encode()),
            **extra.get("model", {}),
        },
    }


def _recipe(recipe: Recipe | str | None, data: DataSet, eps: float) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if recipe is not None and not isinstance(recipe, str):
        raise ConfigError(f"recipe must be a Recipe or a name, got {type(recipe).__name__}")
    return get_recipe(recipe or "mixtrain", preset_for(data.name, eps))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _draw(run: RunFolder, records: list[Record]) -> None:
    """Curves and a first report; an evaluation adds its figures to it later."""
    config = run.config()
    train = config["train"]
    title = f"{config['data']['name']} · {train['recipe']['name']} · ε = {train['eps']}"
    save_png(run.curves_path, records, title)
    write_report(run.report_path, config, records, run.result())
