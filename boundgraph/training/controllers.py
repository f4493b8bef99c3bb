"""Controllers: who decides α, the weight of the bound loss, from epoch to epoch.

The training loss is `(1 − α)·clean + α·bound`. MixTrain (arXiv 1811.02625) changes α
during training so that clean accuracy is not given up for certified accuracy; its rule
is not published in a form known to us word for word. The rules here are BoundGraph's
own and go by their own names:

- `constant`: α stays where it is.
- `ramp`: α moves on a straight line from one value to another over some epochs.
- `accuracy-floor`: α rises by a step after each epoch whose clean accuracy stays over a
  floor and falls by a (larger) step after each epoch below it.
- `balanced`: α is set so that the bound loss supplies a fixed share of the objective,
  measured by the losses' gradient norms where they are given and by their values
  otherwise, and smoothed over epochs.

Every rule keeps α within `[low, high]` and is a function of its state and of the epoch's
metrics only, so that a resumed run continues exactly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from boundgraph.errors import ConfigError, NonFiniteError


def _fraction(owner: str, name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise ConfigError(f"{owner}: {name} must be a number in [0, 1], got {value!r}")
    return float(value)


class Controller(ABC):
    """Holds α and moves it once per epoch.

    Attributes:
        alpha: the weight of the bound loss for the coming epoch, in [0, 1].
    """

    name: ClassVar[str]

    def __init__(self, alpha: float) -> None:
        self.alpha = _fraction(type(self).__name__, "alpha", alpha)

    @abstractmethod
    def update(self, epoch_metrics: Mapping[str, float]) -> float:
        """Take in the metrics of the epoch just finished and return the new α.

        Args:
            epoch_metrics: epoch means; rules read `clean_accuracy`, `clean_loss`,
                `bound_loss`, `clean_grad_norm` and `bound_grad_norm`.

        Raises:
            ConfigError: a metric that the rule needs is absent.
            NonFiniteError: a metric that the rule needs is NaN or infinite.
        """

    def state_dict(self) -> dict[str, Any]:
        """Plain data from which `load_state_dict` continues exactly."""
        return {"name": self.name, "alpha": self.alpha}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of a controller of the same kind.

        Raises:
            ConfigError: the state belongs to another kind of controller.
        """
        if state.get("name") != self.name:
            raise ConfigError(
                f"controller state is of kind {state.get('name')!r}, this one is {self.name!r}"
            )
        self.alpha = _fraction(type(self).__name__, "alpha", state["alpha"])

    def _metric(self, metrics: Mapping[str, float], key: str) -> float:
        if key not in metrics:
            raise ConfigError(
                f"the {self.name!r} controller needs the epoch metric {key!r}; "
                f"given: {', '.join(sorted(metrics)) or 'none'}"
            )
        value = float(metrics[key])
        if not math.isfinite(value):
            raise NonFiniteError(f"epoch metric {key!r} is {value}; the run has diverged")
        return value


class _Counting(Controller):
    """Counts epochs, also across a resumed run; the first `delay` of them change nothing."""

    def __init__(self, alpha: float, delay: int) -> None:
        super().__init__(alpha)
        if delay < 0:
            raise ConfigError(f"{type(self).__name__}: delay must be >= 0, got {delay}")
        self.delay, self.seen = int(delay), 0

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.seen = int(state["seen"])


class _Range:
    """The limits of α."""

    def __init__(self, owner: Controller, low: float, high: float) -> None:
        name = type(owner).__name__
        self.low, self.high = _fraction(name, "low", low), _fraction(name, "high", high)
        if not self.low <= owner.alpha <= self.high:
            raise ConfigError(
                f"{name} needs low <= alpha <= high, got {low}, {owner.alpha}, {high}"
            )

    def clamp(self, alpha: float) -> float:
        return min(self.high, max(self.low, alpha))


class ConstantController(Controller):
    """α never changes."""

    name = "constant"

    def update(self, epoch_metrics: Mapping[str, float]) -> float:
        return self.alpha


class RampController(_Counting):
    """α moves linearly from `alpha` to `final` over `epochs` epochs.

    Args:
        delay: epochs to wait at the initial value first.
    """

    name = "ramp"

    def __init__(self, alpha: float = 0.0, final: float = 0.85, epochs: int = 10, delay: int = 0):
        super().__init__(alpha, delay)
        self.initial = self.alpha
        self.final = _fraction("RampController", "final", final)
        if epochs < 1:
            raise ConfigError(f"RampController: epochs must be >= 1, got {epochs}")
        self.epochs = int(epochs)

    def update(self, epoch_metrics: Mapping[str, float]) -> float:
        self.seen += 1
        done = min(1.0, max(0.0, (self.seen - self.delay) / self.epochs))
        self.alpha = self.initial + (self.final - self.initial) * done
        return self.alpha


class AccuracyFloorController(_Counting):
    """Raise α while clean accuracy stays at or over `floor`, lower it otherwise.

    Falling is faster than rising (`fall > rise`), because an epoch below the floor costs
    what the user asked to keep.

    Args:
        floor: clean accuracy, a fraction, measured on training batches or held-out data,
            whichever the caller passes as `clean_accuracy`.
        rise, fall: steps of α.
        low, high: α stays in this range.
        delay: epochs before the first change, while ε still ramps up.
    """

    name = "accuracy-floor"

    def __init__(
        self,
        alpha: float = 0.7,
        floor: float = 0.97,
        rise: float = 0.02,
        fall: float = 0.04,
        low: float = 0.1,
        high: float = 0.98,
        delay: int = 0,
    ) -> None:
        super().__init__(alpha, delay)
        owner = type(self).__name__
        self.floor = _fraction(owner, "floor", floor)
        self.rise, self.fall = _fraction(owner, "rise", rise), _fraction(owner, "fall", fall)
        self.range = _Range(self, low, high)

    def update(self, epoch_metrics: Mapping[str, float]) -> float:
        accuracy = self._metric(epoch_metrics, "clean_accuracy")
        self.seen += 1
        if self.seen > self.delay:
            move = self.rise if accuracy >= self.floor else -self.fall
            self.alpha = self.range.clamp(self.alpha + move)
        return self.alpha


class BalancedController(Controller):
    """Keep the bound loss at a fixed share of the objective.

    With magnitudes c (clean) and b (bound), `α·b / ((1 − α)·c + α·b) = share` has the
    solution `α = share·c / (share·c + (1 − share)·b)`; α moves towards it by `speed`.
    Magnitudes are the losses' gradient norms if the metrics hold `clean_grad_norm` and
    `bound_grad_norm` (see `gradient_norms`), the mean losses otherwise.

    Args:
        share: of the bound loss, in [0, 1].
        speed: 1 jumps to the solution, smaller values smooth over epochs.
        low, high: α stays in this range.
    """

    name = "balanced"

    def __init__(
        self,
        alpha: float = 0.5,
        share: float = 0.8,
        speed: float = 0.5,
        low: float = 0.1,
        high: float = 0.98,
    ) -> None:
        super().__init__(alpha)
        owner = type(self).__name__
        self.share, self.speed = _fraction(owner, "share", share), _fraction(owner, "speed", speed)
        self.range = _Range(self, low, high)

    def update(self, epoch_metrics: Mapping[str, float]) -> float:
        norms = "clean_grad_norm" in epoch_metrics and "bound_grad_norm" in epoch_metrics
        kind = "grad_norm" if norms else "loss"
        clean = abs(self._metric(epoch_metrics, f"clean_{kind}"))
        bound = abs(self._metric(epoch_metrics, f"bound_{kind}"))
        total = self.share * clean + (1.0 - self.share) * bound
        if total > 0.0:
            target = self.share * clean / total
            self.alpha = self.range.clamp(self.alpha + self.speed * (target - self.alpha))
        return self.alpha


CONTROLLERS: dict[str, type[Controller]] = {
    cls.name: cls
    for cls in (ConstantController, RampController, AccuracyFloorController, BalancedController)
}


def make_controller(name: str, **options: Any) -> Controller:
    """The controller called `name` with its options.

    Raises:
        ConfigError: unknown name or option.
    """
    if name not in CONTROLLERS:
        raise ConfigError(f"unknown controller {name!r}; known: {', '.join(CONTROLLERS)}")
    try:
        return CONTROLLERS[name](**options)
    except TypeError as error:
        raise ConfigError(f"bad options for the {name!r} controller: {error}") from error
