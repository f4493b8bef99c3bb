"""Find the numbers that make a proof: slopes and intermediate bounds, with the checker's engine.

The checker derives them again, so nothing here has to be trusted. Bounds are recorded a little
wide, so that another machine, which adds up in another order, finds them implied as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from boundgraph.verification._record import hexadecimal
from boundgraph.verification.checker import Check
from boundgraph.verification.checker_numbers import Refused

Array = np.ndarray
# Relative to the largest bound of a value; far above the rounding of float64 sums.
SLACK = 2.0**-36


@dataclass(frozen=True)
class SlopeSteps:
    """How slopes are searched for rows that crown leaves undecided.

    Args:
        iterations: evaluations of the rows.
        rate: of Adam, in units of the slope.
        decay: factor on the rate after each.
    """

    iterations: int = 40
    rate: float = 0.25
    decay: float = 0.95


@dataclass
class Proof:
    """The part of a certificate that makes it checkable.

    Args:
        method: which search succeeded: `"crown-ibp"`, `"crown"` or `"alpha-crown"`.
        bounds: value name -> recorded ends.
        slopes: curve name -> slopes of its lines, below and above.
        row_slopes: curve name -> row of the spec -> slopes below, where they differ.
        witnesses: for each clause the row that is proved.
    """

    method: str = "crown-ibp"
    bounds: dict[str, Any] = field(default_factory=dict)
    slopes: dict[str, Any] = field(default_factory=dict)
    row_slopes: dict[str, Any] = field(default_factory=dict)
    witnesses: list[int] = field(default_factory=list)


class Search:
    """A search over one property.

    Args:
        document: program, region and spec of the certificate.
        tensors: its constants.
        time_left: seconds, asked between steps; Refused where there are none.
    """

    def __init__(
        self, document: dict[str, Any], tensors: dict[str, Array], time_left: Callable[[], float]
    ) -> None:
        blank: dict[str, Any] = {"bounds": {}, "slopes": {}, "row_slopes": {}, "witnesses": []}
        self.document, self.tensors = {**document, "proof": blank}, tensors
        self.time_left = time_left

    def find(self, preferred: Sequence[float]) -> Proof:
        """The cheapest proof; `preferred` orders the rows of a clause, largest first.

        Raises:
            Refused: none was found, or the checker does not know an op.
        """
        best: list[str] = []
        for tighten in (False, True):
            attempt = _Attempt(self.document, self.tensors, self.time_left, preferred)
            attempt.enclose(tighten)
            worst = attempt.conclude()
            if worst > 0:
                return attempt.proof
            if tighten:
                worst = attempt.search_slopes(SlopeSteps())
                if worst > 0:
                    return attempt.proof
            best.append(f"{attempt.proof.method} {worst:.6g}")
        raise Refused(f"no proof found; the lowest margins were {', '.join(best)}")


class _Attempt:
    def __init__(
        self,
        document: dict[str, Any],
        tensors: dict[str, Array],
        time_left: Callable[[], float],
        preferred: Sequence[float],
    ) -> None:
        self.check = Check(document, tensors, exact=False)
        self.network, self.engine = self.check.network, self.check.engine
        self.time_left = time_left
        self.proof = Proof()
        spec = document["spec"]
        self.proof.witnesses = [
            max(clause, key=lambda row: preferred[row]) for clause in spec["clauses"]
        ]
        self.rows = sorted(set(self.proof.witnesses))
        self.matrix = np.stack([self.check.numbers(spec["matrix"][row]) for row in self.rows])
        self.offset = self.check.numbers([spec["offset"][row] for row in self.rows])
        self.readers = {s.source: at for at, s in enumerate(self.network.steps) if s.source >= 0}

    def enclose(self, tighten: bool) -> None:
        """Bounds of every value; where tightened, by a walk from operands of curves."""
        self.proof.method = "crown" if tighten else "crown-ibp"
        for at, step in enumerate(self.network.steps):
            if self.time_left() <= 0:
                raise Refused("out of time while the certificate was made")
            if not step.parts and step.source < 0:
                continue
            low, high = self.engine.forward(at)
            reader = self._reader(at)
            if tighten and reader is not None and self._deep(at):
                low, high = self._tightened(at, low, high, reader)
            self.engine.set(at, low, high)
            if step.curve is not None:
                self._choose(at)

    def conclude(self, chosen: dict[int, Array] | None = None) -> float:
        """The smallest margin of the witnesses."""
        return float(self._margins(chosen).min())

    def _margins(
        self, chosen: dict[int, Array] | None, trace: dict[int, Array] | None = None
    ) -> Array:
        out = self.network.output
        walked = self.engine.backward(out, self.matrix, chosen, trace)
        return np.maximum(walked, self.engine.least(self.matrix, out)) + self.offset

    def _reader(self, at: int) -> Any:
        """The curve or maximum that reads a value, if one does."""
        step = self.network.steps[self.readers[at]] if at in self.readers else None
        return step if step is not None and (step.curve or step.windows is not None) else None

    def _deep(self, at: int) -> bool:
        """Whether a walk can beat the interval: not for one map of the inputs."""
        sources = [source for source, _ in self.network.steps[at].parts]
        if any(source in self.engine.balls for source in sources):
            return True
        return len(sources) != 1 or bool(
            self.network.steps[sources[0]].parts or self.network.steps[sources[0]].source >= 0
        )

    def _tightened(self, at: int, low: Array, high: Array, reader: Any) -> tuple[Array, Array]:
        kinked = reader.curve == "kinked"
        wanted = np.flatnonzero((low < 0) & (high > 0) if kinked else low < high)
        found_low, found_high = low.copy(), high.copy()
        for rows in self.check.blocks(wanted):
            if self.time_left() <= 0:
                raise Refused("out of time while the certificate was made")
            found_low[rows] = self.engine.backward(at, self.check.unit_rows(at, rows, 1))
            found_high[rows] = -self.engine.backward(at, self.check.unit_rows(at, rows, -1))
        # A unit that turns out stable on one side needs its other end no more than loosely.
        slack = SLACK * max(float(np.abs(low).max()), float(np.abs(high).max()))
        low_ = _rounded(np.maximum(low, found_low) - slack, -np.inf)
        high_ = _rounded(np.minimum(high, found_high) + slack, np.inf)
        name = self.network.steps[at].name
        self.proof.bounds[name] = {"lower": hexadecimal(low_), "upper": hexadecimal(high_)}
        return np.maximum(low, low_), np.minimum(high, high_)

    def _choose(self, at: int) -> None:
        """Slopes of a curve by the usual rules, on few bits; any would be sound."""
        step = self.network.steps[at]
        low, high = self.engine.ends[step.source]
        if step.curve == "kinked":
            chord = (high - step.kink * low) / np.where(high > low, high - low, 1.0)
            chord = np.where((low < 0) & (high > 0), chord, 1.0)
            above = chord.clip(min(step.kink, 1.0), max(step.kink, 1.0))
            below = np.where(high > -low, 1.0, float(step.kink))
            if step.kink > 1.0:
                below, above = above, np.where(high > -low, 1.0, float(step.kink))
        else:
            below, above = _s_slopes(step.curve, low, high)
        pair = _rounded(below, 0.0), _rounded(above, 0.0)
        self.engine.slopes[at] = pair
        self.proof.slopes[step.name] = {
            "lower": hexadecimal(pair[0]),
            "upper": hexadecimal(pair[1]),
        }

    def search_slopes(self, steps: SlopeSteps) -> float:
        """Supergradient ascent on the lines below, for each row of the property by itself.

        The bound is the least value over the region of a composition of lines. At the input
        where it is taken, its derivative by a slope is coefficient times operand (Danskin).
        """
        self.proof.method = "alpha-crown"
        curves = [
            at
            for at, step in enumerate(self.network.steps)
            if step.curve == "kinked" and 0 <= step.kink <= 1
        ]
        count = len(self.rows)
        slopes = {at: np.tile(self.engine.lines(at)[0][0], (count, 1)) for at in curves}
        first = {at: np.zeros_like(value) for at, value in slopes.items()}
        second = {at: np.zeros_like(value) for at, value in slopes.items()}
        best, kept = np.full(count, -np.inf), {at: value.copy() for at, value in slopes.items()}
        rate = steps.rate
        for iteration in range(1, steps.iterations + 1):
            tried = {at: np.round(value * 1024) / 1024 for at, value in slopes.items()}
            trace: dict[int, Array] = {}
            margins = self._margins(tried, trace)
            better = margins > best
            best = np.maximum(best, margins)
            for at in curves:
                kept[at][better] = tried[at][better]
            if (best > 0).all() or self.time_left() <= 0:
                break
            for at, gradient in self._gradients(tried, trace).items():
                first[at] = 0.9 * first[at] + 0.1 * gradient
                second[at] = 0.999 * second[at] + 0.001 * gradient**2
                corrected = second[at] / (1 - 0.999**iteration)
                step = first[at] / (1 - 0.9**iteration) / (np.sqrt(corrected) + 1e-12)
                least = float(self.network.steps[at].kink)
                slopes[at] = (slopes[at] + rate * step).clip(least, 1.0)
            rate *= steps.decay
        for at in curves:
            table = {str(row): hexadecimal(kept[at][i]) for i, row in enumerate(self.rows)}
            self.proof.row_slopes[self.network.steps[at].name] = table
        return self.conclude(kept)

    def _gradients(self, slopes: dict[int, Array], trace: dict[int, Array]) -> dict[int, Array]:
        values: dict[int, Any] = {}
        gradients = {}
        for at in sorted(trace):
            form, step = trace[at], self.network.steps[at]
            if step.curve is not None:
                operand = values[step.source]
                below = self.engine.lines(at)[0]
                if at in slopes:
                    below = self.engine.line(at, slopes[at], 0)
                    low, high = self.engine.ends[step.source]
                    active = (form >= 0) & (low < 0) & (high > 0)
                    gradients[at] = np.where(active, form * operand, 0.0)
                pairs = zip(below, self.engine.lines(at)[1], strict=True)
                slope, offset = (np.where(form >= 0, *pair) for pair in pairs)
                values[at] = slope * operand + offset
            elif step.windows is not None:
                index, always, top = self.engine.winners(at)
                follows = (form >= 0) | always
                values[at] = np.where(follows, values[step.source][:, index[:, 0]], top)
            elif step.parts:
                total: Any = sum(map_.apply(values[source]) for source, map_ in step.parts)
                values[at] = total if step.bias is None else total + step.bias[0]
            else:
                low, high = self.engine.ends[at]
                values[at] = np.where(form >= 0, low, high)
        return gradients


def _rounded(values: Array, towards: float) -> Array:
    """On the grid of float32, outwards for an infinite `towards`: fewer digits to write."""
    near = values.astype(np.float32)
    if towards:
        near = np.nextafter(near, np.float32(towards))
    return near.astype(np.float64)


def _s_slopes(curve: str | None, low: Array, high: Array) -> tuple[Array, Array]:
    """Chord and tangent where the curve bends one way, else the smaller of the end slopes."""

    def value(x: Array) -> Array:
        return np.tanh(x) if curve == "tanh" else 0.5 * (1 + np.tanh(x / 2))

    def slope(x: Array) -> Array:
        return 1 - value(x) ** 2 if curve == "tanh" else value(x) * (1 - value(x))

    width = np.where(high > low, high - low, 1.0)
    chord = np.where(high > low, (value(high) - value(low)) / width, slope(low))
    tangent, least = slope(low / 2 + high / 2), np.minimum(slope(low), slope(high))
    below = np.where(low >= 0, chord, np.where(high <= 0, tangent, least))
    above = np.where(low >= 0, tangent, np.where(high <= 0, chord, least))
    return below, above
