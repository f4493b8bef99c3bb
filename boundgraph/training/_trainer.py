"""The training loop: the state of a run, how it moves, is saved and is restored."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from boundgraph.data import Batches, DataSet, derive_seed
from boundgraph.errors import CheckpointError, ConfigError
from boundgraph.training._board import Board, open_board
from boundgraph.training._interrupt import interruptible
from boundgraph.training._processes import Processes
from boundgraph.training.checkpoint import load_checkpoint, save_checkpoint
from boundgraph.training.initialization import WeightAverage
from boundgraph.training.layout import ImageLayout
from boundgraph.training.losses import MixedLoss, gradient_norms
from boundgraph.training.metrics import MetricsFile, Record, finite, read_metrics
from boundgraph.training.progress import Progress
from boundgraph.training.recipes import Recipe
from boundgraph.training.run import RunFolder
from boundgraph.training.step import Step, compile_step
from boundgraph.training.validation import Validation, check_fit, count_flops

T = TypeVar("T")
# Streams of random numbers that come from one seed.
ORDER, LOSS, LAYERS, WEIGHTS = range(4)
# A run that would take less than this eagerly is over before compiling has paid off.
WORTH_COMPILING_SECONDS = 300.0
EAGER_STEP_SECONDS, EAGER_FLOPS_PER_SECOND = 0.006, 2e10


@dataclass(frozen=True)
class TrainerOptions:
    """Arguments of `fit` that the loop needs; see there."""

    eps: float
    seed: int
    compile: Literal["auto"] | bool
    amp: bool
    clip: tuple[float, float] | None
    validate: int
    checkpoint_seconds: float | None
    norm: float = math.inf

    def __post_init__(self) -> None:
        if self.compile not in ("auto", True, False):
            raise ConfigError(f"compile must be 'auto', True or False, got {self.compile!r}")
        if isinstance(self.validate, bool) or self.validate < 0:
            raise ConfigError(f"validate must be a number of images >= 0, got {self.validate!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ConfigError(f"seed must be a whole number >= 0, got {self.seed!r}")


class Trainer:
    """One run. `epoch` and `batch` count what is done; both are 0 at the start."""

    def __init__(
        self, model: nn.Module, data: DataSet, recipe: Recipe, options: TrainerOptions
    ) -> None:
        self.model, self.data, self.recipe, self.options = model, data, recipe, options
        first = next(model.parameters(), None)
        if first is None:
            raise ConfigError("the model has no parameters to train")
        self.device = first.device
        self.processes = Processes.join(self.device)
        self.rank = self.processes.rank
        x, y = data.x_train.to(self.device), data.y_train.to(self.device)
        check_fit(model, x[:2], data.classes)
        self.batches = Batches(
            x,
            y,
            self.processes.share(recipe.batch_size, "batch_size"),
            derive_seed(options.seed, ORDER) % 2**31,
            self.rank,
            self.processes.world,
        )
        generator = torch.Generator(self.device)
        recipe.initialize(model, generator.manual_seed(derive_seed(options.seed, WEIGHTS)))
        # Rows of backward bounds meet the layout of no single op: measured 1.5 times slower.
        self.layout = ImageLayout(model, wanted=not recipe.backward)
        seed = derive_seed(options.seed, LOSS, self.rank)
        self.loss = self.processes.make_loss(
            recipe, model, options.eps, options.clip, options.norm, seed
        )
        self.optimizer = recipe.make_optimizer(model)
        self.average = None if recipe.ema is None else WeightAverage(model, recipe.ema)
        self.compiled = self._worth_compiling(x)
        self.step: Step = self._make_step()
        self.validation = self._make_validation()
        self.epoch = self.batch = self.continued_from = 0
        self.seconds = 0.0
        self.records: list[Record] = []
        self._sums: dict[str, Tensor | float] = {}
        self.run: RunFolder | None = None
        self._metrics: MetricsFile | None = None
        self._board: Board | None = None

    @property
    def total_steps(self) -> int:
        return self.recipe.epochs * len(self.batches)

    @property
    def steps_done(self) -> int:
        return self.epoch * len(self.batches) + self.batch

    def only_first(self, action: Callable[[], T], otherwise: T) -> T:
        """Do something in the first process only, the others waiting for it."""
        return self.processes.only_first(action, otherwise)

    def resume(self, run: RunFolder) -> None:
        """Take up the state in a run folder, if it holds a checkpoint."""
        self.run = run
        if run.checkpoint_path.is_file():
            self._restore(run)
        if self.rank == 0:
            self._metrics = MetricsFile(run.metrics_path, keep=self.epoch)
            self._board = open_board(run.path, purge_from=self.epoch + 1)

    def train(self, progress: Progress, on_epoch: Callable[[Record], None] | None) -> bool:
        """Run to the end; returns False where a person interrupted it."""
        self._announce(progress)
        if self.epoch == self.recipe.epochs:
            self._use_average()
            return True
        progress.start(self.steps_done, self.total_steps)
        began = saved = time.perf_counter()
        before, first = self.seconds, self.steps_done
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            interruptible(self.processes.world == 1) as interrupted,
            torch.random.fork_rng(devices),
        ):
            self._restore_random_state()
            while self.epoch < self.recipe.epochs:
                for x, y in self._epoch_batches():
                    self._train_on(x, y)
                    progress.step()
                    now = time.perf_counter()
                    self.seconds = before + now - began
                    if self.batch < len(self.batches) and self._mid_epoch_save(
                        bool(interrupted), now - saved
                    ):
                        saved = now
                        if interrupted:
                            return self._stop(progress)
                self._finish_epoch()
                self.seconds = before + time.perf_counter() - began
                rate = (time.perf_counter() - began) / (self.steps_done - first)
                progress.epoch(self.records[-1], rate * (self.total_steps - self.steps_done))
                if on_epoch is not None:
                    on_epoch(self.records[-1])
                if self._due(time.perf_counter() - saved) or interrupted:
                    self.save()
                    saved = time.perf_counter()
                if interrupted and self.epoch < self.recipe.epochs:
                    return self._stop(progress)
        self.save()
        self._use_average()
        return True

    def save(self) -> None:
        """Write a checkpoint, where the run has a folder and this is the first process."""
        if self.run is None or self.rank != 0:
            return
        weights = self.model.state_dict()
        if self.average is not None:
            names = [name for name, _ in self.model.named_parameters()]
            weights = {**weights, **dict(zip(names, self.average.average, strict=True))}
        cuda = self.device.type == "cuda"
        state = {
            "weights": weights,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss": self.loss.training_state(),
            "average": None if self.average is None else self.average.state_dict(),
            "epoch": self.epoch,
            "batch": self.batch,
            "sums": {name: float(value) for name, value in self._sums.items()},
            "seconds": self.seconds,
            "compiled": self.compiled,
            "random": torch.get_rng_state(),
            "random_device": torch.cuda.get_rng_state(self.device) if cuda else None,
        }
        save_checkpoint(self.run.checkpoint_path, state)

    def close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
        if self._board is not None:
            self._board.close()
        self.layout.restore()
        self.processes.leave()

    def _epoch_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.batch == 0:
            self._sums = {}
            # A function of the epoch, so that processes need not save each other's state.
            torch.manual_seed(derive_seed(self.options.seed, LAYERS, self.epoch, self.rank))
            generator = getattr(self.loss, "generator", None)
            if generator is not None:
                generator.manual_seed(derive_seed(self.options.seed, LOSS, self.epoch, self.rank))
        self.model.train()
        return self.batches.epoch(self.epoch, self.batch)

    def _train_on(self, x: Tensor, y: Tensor) -> None:
        self._last = (x, y)
        self.recipe.apply(
            self.loss,
            self.optimizer,
            target_eps=self.options.eps,
            step=self.steps_done,
            total=self.total_steps,
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.amp):
            measured = self.step(self.layout.batch(x), y)
        if self.average is not None:
            early = self.steps_done < self.recipe.ema_start * self.total_steps
            self.average.update(0.0 if early else None)
        for name, value in measured.items():
            # Tensors, so that an accelerator is not waited for in every step.
            self._sums[name] = self._sums.get(name, 0.0) + value.double()
        self.batch += 1

    def _finish_epoch(self) -> None:
        self.step.raise_if_nonfinite()
        count = len(self.batches)
        means = self.processes.mean({k: float(v) / count for k, v in self._sums.items()})
        if self.recipe.controller == "balanced" and isinstance(self.loss, MixedLoss):
            means |= self.processes.mean(gradient_norms(self.loss, *self._last))
        record: Record = {
            "epoch": self.epoch + 1,
            "epochs": self.recipe.epochs,
            "eps": float(self.loss.eps),
            "alpha": float(self.loss.alpha),
            "lr": self.optimizer.param_groups[0]["lr"],
            **means,
            **self._measure(),
            "seconds": round(self.seconds, 3),
        }
        self.loss.end_epoch(means)
        self.epoch, self.batch = self.epoch + 1, 0
        self.records.append(finite(record))
        if self._metrics is not None:
            self._metrics.write(self.records[-1])
        if self._board is not None:
            self._board.write(self.records[-1])

    def _measure(self) -> dict[str, float]:
        if self.validation is None:
            return {}
        if self.average is None:
            return self.validation.measure()
        self.average.swap()
        try:
            return self.validation.measure()
        finally:
            self.average.swap()

    def _due(self, waited: float) -> bool:
        limit = self.options.checkpoint_seconds
        return limit is not None and waited >= limit

    def _mid_epoch_save(self, interrupted: bool, waited: float) -> bool:
        # Several processes save between epochs only, where their states agree.
        if self.processes.world > 1 or not (interrupted or self._due(waited)):
            return False
        self.save()
        return True

    def _stop(self, progress: Progress) -> bool:
        where = f"epoch {self.epoch + 1} of {self.recipe.epochs}"
        if self.run is None:
            progress.note(f"Interrupted in {where}. There is no run folder, so nothing was saved.")
        else:
            progress.note(
                f"Interrupted in {where}. The checkpoint is written; the same command with "
                f"--run-dir {self.run.path} continues from this very step."
            )
        return False

    def _use_average(self) -> None:
        if self.average is not None:
            self.average.swap()
        self.model.eval()

    def _announce(self, progress: Progress) -> None:
        if self.continued_from or self.batch:
            progress.note(
                f"Continuing after {self.epoch} of {self.recipe.epochs} epochs and "
                f"{self.batch} batches."
            )
        how = {
            "eager": "eagerly, without torch.compile",
            "whole": "as one compiled region; the first step compiles it, 20 to 60 s",
            "loss": "with compiled losses; the first step compiles them, 20 to 60 s",
        }[self.step.mode]
        why = " (too short a run to win that time back)" if self.options.compile == "auto" else ""
        progress.note(f"The step runs {how}{why if self.step.mode == 'eager' else ''}.")

    def _make_step(self) -> Step:
        return compile_step(
            self.loss.model,
            self.optimizer,
            self.loss,
            clip_norm=self.recipe.clip_norm,
            backend="inductor" if self.compiled else None,
        )

    def _make_validation(self) -> Validation | None:
        count = min(self.options.validate, len(self.data.x_test))
        if not count:
            return None
        method = self.recipe.method if self.recipe.loss == "mixed" else "ibp"
        x = self.data.x_test[:count].to(self.device)
        y = self.data.y_test[:count].to(self.device)
        options = self.options
        return Validation(self.model, x, y, options.eps, method, options.clip, options.norm)

    def _worth_compiling(self, x: Tensor) -> bool:
        if self.options.compile != "auto":
            return self.options.compile
        # From sizes, never from timing: the choice decides the last bits of the weights.
        subset = self.recipe.subset or self.recipe.batch_size
        images = self.recipe.batch_size + 2 * subset * (self.recipe.loss == "mixed")
        seconds = (
            EAGER_STEP_SECONDS + 3 * count_flops(self.model, x) * images / EAGER_FLOPS_PER_SECOND
        )
        return self.total_steps * seconds > WORTH_COMPILING_SECONDS

    def _restore(self, run: RunFolder) -> None:
        state = load_checkpoint(run.checkpoint_path, map_location=self.device)
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.loss.load_training_state(state["loss"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.epoch, self.batch = int(state["epoch"]), int(state["batch"])
            self._sums, self.seconds = dict(state["sums"]), float(state["seconds"])
            self._random = (state["random"], state["random_device"])
            compiled = bool(state["compiled"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"checkpoint {run.checkpoint_path} is of another model or another version: {error}"
            ) from error
        if self.options.compile == "auto" and compiled != self.compiled:
            self.compiled = compiled
            self.step = self._make_step()
        self.continued_from = self.epoch
        self.records = read_metrics(run.metrics_path)[: self.epoch]
        if len(self.records) < self.epoch:
            raise CheckpointError(
                f"{run.metrics_path} has {len(self.records)} epochs, but the checkpoint beside it "
                f"is at epoch {self.epoch}; restore the file, or start anew with --no-resume"
            )

    _random: tuple[Tensor, Tensor | None] | None = None
    _last: tuple[Tensor, Tensor]

    def _restore_random_state(self) -> None:
        if self._random is None:
            return
        host, device = self._random
        torch.set_rng_state(host.cpu())
        if device is not None:
            torch.cuda.set_rng_state(device.cpu(), self.device)
