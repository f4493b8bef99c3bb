"""What an evaluation found: clean, attacked and certified samples, and their shares."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Masks:
    """Verdicts per sample, `[n]` bool each, in the order of the data, on the CPU."""

    clean: Tensor
    attacked: Tensor
    certified: Tensor


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    A sample is clean-correct when the label's logit is above all others (a tie is not),
    attacked-correct when in addition no attack broke it, and certified when a sound bound
    proves that nothing in the region can. `certified <= attacked <= clean` always holds.

    Args:
        n: samples evaluated.
        clean_correct, attacked_correct, certified_correct: counts.
        eps: radius of the region, in input units.
        method: bound method, or several joined by `+` where a cascade was asked for.
        attack: what the attack was, in words.
        seconds: wall-clock time.
        masks: verdicts per sample.
    """

    n: int
    clean_correct: int
    attacked_correct: int
    certified_correct: int
    eps: float
    method: str
    attack: str
    seconds: float
    masks: Masks | None = field(default=None, compare=False, repr=False)

    @property
    def clean(self) -> float:
        """Fraction of samples classified correctly."""
        return self.clean_correct / self.n

    @property
    def attacked(self) -> float:
        """Fraction still correct under attack."""
        return self.attacked_correct / self.n

    @property
    def certified(self) -> float:
        """Fraction proved correct on the whole region."""
        return self.certified_correct / self.n

    @property
    def counts(self) -> dict[str, int]:
        return {
            "clean_correct": self.clean_correct,
            "attacked_correct": self.attacked_correct,
            "certified_correct": self.certified_correct,
            "n": self.n,
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON."""
        return {
            "clean": self.clean,
            "attacked": self.attacked,
            "certified": self.certified,
            **self.counts,
            "eps": self.eps,
            "method": self.method,
            "attack": self.attack,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        lines = [
            f"{name:<9} {count / self.n:7.2%}  {count:,} of {self.n:,}  {what}"
            for name, count, what in (
                ("clean", self.clean_correct, "correct as they are"),
                ("attacked", self.attacked_correct, f"still correct after {self.attack}"),
                ("certified", self.certified_correct, f"proved by {self.method}"),
            )
        ]
        return "\n".join([*lines, f"eps {self.eps:g}, {self.seconds:.1f} s"])


Progress = Callable[[Evaluation, int | None], None]


def reporter(progress: bool | Progress | None) -> Progress:
    """What to call with the evaluation so far, given an option of `evaluate`."""
    if callable(progress):
        return progress
    if not progress:
        return lambda *_: None

    def line(so_far: Evaluation, total: int | None) -> None:
        of = f"/{total:,}" if total is not None else ""
        end = "\n" if so_far.n == total else "\r"
        sys.stderr.write(
            f"evaluated {so_far.n:,}{of}: clean {so_far.clean:.1%}, attacked "
            f"{so_far.attacked:.1%}, certified {so_far.certified:.1%}{end}"
        )
        sys.stderr.flush()

    return line
