"""Values that move during training, as functions of the step.

A schedule is a frozen dataclass with `value(step, total)`. Positions are fractions of
the whole run in [0, 1], so a schedule does not change when the run gets longer. ε and
the learning rate use the same classes.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from boundgraph.errors import ConfigError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_finite(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and math.isfinite(value)):
            raise ConfigError(
                f"{type(owner).__name__}.{name} must be a finite number, got {value!r}"
            )


def _require_span(owner: object, start: float, end: float) -> None:
    _require(
        0.0 <= start < end <= 1.0,
        f"{type(owner).__name__} needs 0 <= start < end <= 1 (fractions of the run), "
        f"got start={start!r}, end={end!r}",
    )


@dataclass(frozen=True)
class Schedule(ABC):
    """A number for every step of a run."""

    kind: ClassVar[str]

    @abstractmethod
    def at(self, fraction: float) -> float:
        """The value when `fraction` (0 to 1) of the run is done."""

    def value(self, step: int, total: int) -> float:
        """The value at `step`, counted from 0, of a run of `total` steps.

        Raises:
            ConfigError: `total < 1` or `step < 0`.
        """
        _require(total >= 1, f"a schedule needs total >= 1 steps, got {total}")
        _require(step >= 0, f"a schedule needs step >= 0, got {step}")
        return self.at(min(1.0, step / total))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `schedule_from_dict` reads back."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value throughout."""

    level: float
    kind: ClassVar[str] = "constant"

    def __post_init__(self) -> None:
        _require_finite(self, "level")

    def at(self, fraction: float) -> float:
        return self.level


@dataclass(frozen=True)
class Linear(Schedule):
    """`initial` until `start`, a straight line to `final` at `end`, then `final`."""

    initial: float
    final: float
    start: float = 0.0
    end: float = 1.0
    kind: ClassVar[str] = "linear"

    def __post_init__(self) -> None:
        _require_finite(self, "initial", "final", "start", "end")
        _require_span(self, self.start, self.end)

    def at(self, fraction: float) -> float:
        done = (fraction - self.start) / (self.end - self.start)
        done = min(1.0, max(0.0, done))
        return self.initial + (self.final - self.initial) * done


@dataclass(frozen=True)
class Smoothed(Schedule):
    """A power curve that leaves `initial` flat and joins a straight line to `final`.

    The slope is continuous where they meet. This is the shape of the "smoothed"
    schedule of CROWN-IBP and auto_LiRPA, whose power is 4; 2 is gentler.

    Args:
        middle: where, as a fraction of the ramp, the curve turns into the line.
        power: exponent of the curve, at least 1.
    """

    initial: float
    final: float
    start: float = 0.0
    end: float = 1.0
    middle: float = 0.25
    power: float = 2.0
    kind: ClassVar[str] = "smoothed"

    def __post_init__(self) -> None:
        _require_finite(self, "initial", "final", "start", "end", "middle", "power")
        _require_span(self, self.start, self.end)
        _require(0.0 < self.middle < 1.0, f"Smoothed.middle must be in (0, 1), got {self.middle}")
        _require(self.power >= 1.0, f"Smoothed.power must be >= 1, got {self.power}")

    def at(self, fraction: float) -> float:
        done = min(1.0, max(0.0, (fraction - self.start) / (self.end - self.start)))
        m, p = self.middle, self.power
        scale = 1.0 / ((1.0 - m) * p * math.pow(m, p - 1.0) + math.pow(m, p))
        if done < m:
            share = scale * math.pow(done, p)
        else:
            joint = scale * math.pow(m, p)
            share = joint + (1.0 - joint) * (done - m) / (1.0 - m)
        return self.initial + (self.final - self.initial) * share


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Straight lines through `(fraction, value)` points, constant outside them.

    Two points at one fraction make a jump; the later one holds from there on.
    """

    points: tuple[tuple[float, float], ...]
    kind: ClassVar[str] = "piecewise"

    def __post_init__(self) -> None:
        try:
            points = tuple((float(f), float(v)) for f, v in self.points)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"Piecewise.points must be (fraction, value) pairs, got {self.points!r}"
            ) from error
        object.__setattr__(self, "points", points)
        _require(len(points) > 0, "Piecewise.points is empty")
        _require(
            all(math.isfinite(f) and math.isfinite(v) and 0.0 <= f <= 1.0 for f, v in points),
            f"Piecewise.points need fractions in [0, 1] and finite values, got {points}",
        )
        fractions = [f for f, _ in points]
        _require(
            fractions == sorted(fractions), f"Piecewise fractions must not decrease: {fractions}"
        )

    def at(self, fraction: float) -> float:
        if fraction < self.points[0][0]:
            return self.points[0][1]
        before = max(i for i, (f, _) in enumerate(self.points) if f <= fraction)
        if before == len(self.points) - 1:
            return self.points[before][1]
        (f0, v0), (f1, v1) = self.points[before], self.points[before + 1]
        return v0 + (v1 - v0) * (fraction - f0) / (f1 - f0)


@dataclass(frozen=True)
class Cosine(Schedule):
    """A linear warm-up from 0 to `peak`, a plateau, then half a cosine down to `final`.

    Args:
        warmup: fraction at which `peak` is reached; 0 starts there.
        hold: fraction until which `peak` is kept; must not lie before `warmup`.
    """

    peak: float
    final: float = 0.0
    warmup: float = 0.0
    hold: float = 0.0
    kind: ClassVar[str] = "cosine"

    def __post_init__(self) -> None:
        _require_finite(self, "peak", "final", "warmup", "hold")
        _require(0.0 <= self.warmup < 1.0, f"Cosine.warmup must be in [0, 1), got {self.warmup}")
        _require(0.0 <= self.hold < 1.0, f"Cosine.hold must be in [0, 1), got {self.hold}")
        _require(
            self.hold == 0.0 or self.hold >= self.warmup,
            f"Cosine.hold ({self.hold}) lies before the end of the warm-up ({self.warmup})",
        )

    def at(self, fraction: float) -> float:
        if fraction < self.warmup:
            return self.peak * fraction / self.warmup
        begin = max(self.warmup, self.hold)
        done = min(1.0, max(0.0, (fraction - begin) / (1.0 - begin)))
        return self.final + (self.peak - self.final) * 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Steps(Schedule):
    """`level`, multiplied by `factor` at each fraction in `at_fractions`."""

    level: float
    factor: float = 0.2
    at_fractions: tuple[float, ...] = (0.7, 0.9)
    kind: ClassVar[str] = "steps"

    def __post_init__(self) -> None:
        _require_finite(self, "level", "factor")
        object.__setattr__(self, "at_fractions", tuple(float(f) for f in self.at_fractions))
        _require(self.factor > 0.0, f"Steps.factor must be > 0, got {self.factor}")
        _require(
            all(0.0 <= f <= 1.0 for f in self.at_fractions),
            f"Steps.at_fractions must lie in [0, 1], got {self.at_fractions}",
        )

    def at(self, fraction: float) -> float:
        return self.level * self.factor ** sum(fraction >= f for f in self.at_fractions)


SCHEDULES: dict[str, type[Schedule]] = {
    cls.kind: cls for cls in (Constant, Linear, Smoothed, Piecewise, Cosine, Steps)
}


def schedule_from_dict(data: Mapping[str, Any]) -> Schedule:
    """Rebuild a schedule from `Schedule.to_dict()`.

    Raises:
        ConfigError: unknown kind, or options the kind does not have.
    """
    options = dict(data)
    kind = options.pop("kind", None)
    if kind not in SCHEDULES:
        raise ConfigError(f"unknown schedule kind {kind!r}; known: {', '.join(SCHEDULES)}")
    try:
        return SCHEDULES[kind](**options)
    except TypeError as error:
        raise ConfigError(f"bad options for the {kind!r} schedule: {error}") from error
