"""The options of a compilation, and which of them go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from boundgraph.domains.specs import CrossEntropy, LinearSpec, Margin, Spec
from boundgraph.errors import ConfigError

# alpha-crown optimises slopes for fixed weights; its bounds carry no gradient to them.
TRAINING_METHODS = ("ibp", "symbolic", "mix", "crown-ibp", "crown")
METHODS = (*TRAINING_METHODS, "alpha-crown", "auto")
SCHEDULES = ("auto", "forward", "backward", "windows")
# The order in which `verify` and `evaluate` try methods, and those worth an attack before.
CASCADE = ("ibp", "crown-ibp", "crown", "alpha-crown")
EXPENSIVE = ("crown", "alpha-crown")
TARGETS = ("real", "executed")
ACCUMULATE = ("dtype", "float64")


def for_certifying(method: str, rounding: str, accumulate: str) -> dict[str, Any]:
    """Options of a program that decides verdicts: `accumulate` is for `ibp` with sound rounding.

    Raises:
        ConfigError: `accumulate` is unknown.
    """
    if accumulate not in ACCUMULATE:
        raise ConfigError(f"accumulate must be 'dtype' or 'float64', got {accumulate!r}")
    options: dict[str, Any] = {"method": method, "rounding": rounding}
    if rounding == "sound" and method == "ibp":
        options["accumulate"] = accumulate
    return options


def methods_of(names: str | Sequence[str] | None) -> tuple[str, ...]:
    """The bound methods that decide verdicts, in order and each once; None for all of `CASCADE`.

    Raises:
        ConfigError: a method is unknown, or there are none.
    """
    if names is None:
        return CASCADE
    chosen = (names,) if isinstance(names, str) else tuple(names)
    unknown = [name for name in chosen if name not in METHODS]
    if unknown or not chosen:
        raise ConfigError(
            f"unknown method {unknown[0] if unknown else chosen!r}; choose from "
            f"{', '.join(METHODS)}"
        )
    return tuple(dict.fromkeys(chosen))


@dataclass(frozen=True)
class CompileOptions:
    """How to compile.

    Args:
        method: one of `METHODS`.
        spec: bound rows of this specification instead of the outputs.
        frontend: `"auto"`, `"torch_fx"` or `"torch_export"`.
        training: allow BatchNorm in training mode (statistics from a clean batch).
        dynamic_batch: dimension 0 of the inputs may vary; None finds out.
        keep_symbolic: outputs stay symbolic (internal; for the interval attack).
        lower_only: backward methods bound the outputs below only (half the rows).
        rounding: `"nearest"`, or `"sound"` for bounds that hold in real arithmetic.
        norms: names of captured inputs that are p-balls, and p.
        linear: the outputs of a backward program are its bounds and then its linear forms.
        tracks: under a margin, its interval bounds are a second output (for training).
        target: what a sound bound contains: the `"real"` network, or also the `"executed"` one.
        max_memory: bytes that a call may take for its bounds; None for a default.
        keep_clean: where statistics come from a clean batch, its logits and statistics are
            outputs, too (internal; a training loss needs no second clean pass then).
        masked: inputs behind the first are masks of dropout, so that the clean logits come from
            the program in any case (internal).
        tune_for: "cpu" or "cuda": the kind of device whose passes are chosen.
        max_time: seconds that a call should take under `"auto"`; None for a default.
        batch: samples of a call that `"auto"` plans for.
        schedule: direction of `"symbolic"`: `"forward"`, `"windows"` (forward, too), `"backward"`,
            or `"auto"`, the cheapest. Of `"mix"`: `"auto"`, which is `"forward"`, or `"windows"`.
        accumulate: `"dtype"`, or `"float64"` for the centres of a sound `ibp` program.
        parameters: names of parameters whose regions are the last inputs.
    """

    method: str = "ibp"
    spec: Spec | None = None
    frontend: str = "auto"
    training: bool = False
    dynamic_batch: bool | None = None
    keep_symbolic: bool = False
    lower_only: bool = False
    rounding: str = "nearest"
    target: str = "real"
    max_memory: int | None = None
    norms: tuple[tuple[str, float], ...] = ()
    linear: bool = False
    keep_clean: bool = False
    masked: bool = False
    tune_for: str = "cpu"
    tracks: bool = False
    max_time: float | None = None
    batch: int = 1
    schedule: str = "auto"
    parameters: tuple[str, ...] = ()
    accumulate: str = "dtype"

    @property
    def sound(self) -> bool:
        return self.rounding == "sound"

    def __post_init__(self) -> None:
        self._check_rounding()
        if self.method not in METHODS:
            raise ConfigError(f"unknown method {self.method!r}; choose one of {', '.join(METHODS)}")
        if self.spec is not None and not isinstance(self.spec, Margin | LinearSpec):
            raise ConfigError(f"spec must be Margin or LinearSpec, got {type(self.spec).__name__}")
        if self.max_memory is not None and self.max_memory <= 0:
            raise ConfigError(
                f"max_memory must be a positive number of bytes, got {self.max_memory}"
            )
        if self.max_time is not None and not self.max_time > 0:
            raise ConfigError(f"max_time must be a positive number of seconds, got {self.max_time}")
        if self.max_time is not None and self.method != "auto":
            raise ConfigError(
                f"max_time= is what method='auto' plans for; {self.method!r} has nothing to choose"
            )
        self._check_schedule()
        if self.tracks and not isinstance(self.spec, Margin):
            raise ConfigError("tracks=True needs spec=Margin(classes)")
        if isinstance(self.spec, CrossEntropy) and (self.sound or not self.tracks):
            raise ConfigError("CrossEntropy is a training loss: it needs tracks=True and no sound")
        if self.tracks and self.method not in ("crown-ibp", "crown"):
            raise ConfigError(f"method {self.method!r} has no backward and interval track")

    def _check_schedule(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ConfigError(
                f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}"
            )
        if self.schedule == "auto":
            return
        if self.method != "symbolic" and (self.method, self.schedule) != ("mix", "windows"):
            raise ConfigError(
                f"schedule={self.schedule!r} is for method='symbolic'; "
                f"{self.method!r} has one schedule or chooses itself"
            )
        if self.schedule != "forward" and self.sound:
            raise ConfigError("rounding='sound' has the forward schedule of 'symbolic' only")
        if self.schedule == "backward" and self.keep_symbolic:
            raise ConfigError("keep_symbolic=True needs schedule='forward': forms have no symbols")

    def _check_rounding(self) -> None:
        if self.rounding not in ("nearest", "sound"):
            raise ConfigError(f"rounding must be 'nearest' or 'sound', got {self.rounding!r}")
        if self.target not in TARGETS:
            raise ConfigError(f"target must be one of {', '.join(TARGETS)}, got {self.target!r}")
        if self.target != "real" and not self.sound:
            raise ConfigError(f"target={self.target!r} needs rounding='sound'")
        if self.accumulate not in ACCUMULATE:
            raise ConfigError(f"accumulate must be 'dtype' or 'float64', got {self.accumulate!r}")
        fits = self.sound and self.target == "real" and self.method == "ibp"
        if self.accumulate == "float64" and not fits:
            raise ConfigError(
                "accumulate='float64' is for rounding='sound', target='real' and method='ibp'; "
                "other sound methods sum in float64 anyway"
            )
        self._check_sound_balls()
        if self.target != "real" and self.method != "ibp":
            raise ConfigError(
                f"target={self.target!r} needs method='ibp': linear bounds relate real numbers, "
                "which computed ones do not follow exactly"
            )
        if self.sound and self.linear:
            raise ConfigError(
                "rounding='sound' gives bounds, not linear ones: a form that rounding is "
                "charged to is valid around centres that it does not show"
            )
        if self.sound and self.training:
            raise ConfigError(
                "rounding='sound' certifies; statistics of a training batch have no sound rule"
            )

    def _check_sound_balls(self) -> None:
        if not self.sound or not self.norms:
            return
        unknown = [norm for _, norm in self.norms if norm not in (1.0, 2.0)]
        if unknown:
            raise ConfigError(
                f"rounding='sound' knows balls of the 1-, 2- and infinity-norm, not of the "
                f"{unknown[0]:g}-norm, whose powers have no declared rounding"
            )
        if self.method in ("symbolic", "mix") or self.target != "real":
            raise ConfigError(
                "rounding='sound' takes p-balls with ibp, crown-ibp, crown and alpha-crown and "
                f"the real network, not with method {self.method!r} and target {self.target!r}"
            )
