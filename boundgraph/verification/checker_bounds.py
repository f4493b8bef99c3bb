"""Bounds over the real numbers: intervals and backward linear forms.

Part of the checker (see checker.py): numpy and the standard library only; numbers and what
rounding costs are in checker_numbers.py.

1. Let v = L·u + b, and let the map M have |L − M| <= ρ|M|. For |u − c| <= r,
   |L·u − fl(M·c)| <= |M|·(r + (γ + ρ)(|c| + r)) + n·ETA                        (`_affine`)
2. A form a·v + o goes on to u with a' = fl(aᵀM), from there on exact by definition. What that
   drops, |(aᵀL − a')·u| <= (γ + ρ)·|a|ᵀ(|M|·mag(u)) + n·ETA·Σmag(u), comes off o (`_through`)
3. On [l, u] a line of any slope s lies below f with the offset min f(x) − s·x, and above with
   the maximum. Piecewise linear f take them at l, u or the kink (`_kinked`); for sigmoid and
   tanh the interval is cut into pieces, and f(x) − s·x stays within max|f' − s|·h of its value
   at the middle of a piece of half-width h (`_curved`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

if __package__:
    from boundgraph.verification.checker_numbers import (
        FLOATS,
        Arithmetic,
        Array,
        require,
        s_shaped,
        steepness,
    )
else:  # run as a script
    from checker_numbers import (  # type: ignore[import-not-found,no-redef]
        FLOATS,
        Arithmetic,
        Array,
        require,
        s_shaped,
        steepness,
    )

PIECES = 32


def _difference(ar: Arithmetic, x: Any, y: Array) -> tuple[Array, Array]:
    """`x − y`, enclosed; a difference is 0 only where it is exactly so."""
    gap = x - y
    return np.where(gap == 0, gap, ar.down(gap)), np.where(gap == 0, gap, ar.up(gap))


def _kinked(ar: Arithmetic, low: Array, high: Array, slope: Array, kink: Any) -> Any:
    """Offsets below and above `max(x, 0) + kink·min(x, 0)` on [low, high], low < 0 < high.

    `f(x) − slope·x` is linear on each side of 0, so its extremes are at low, 0 and high.
    """
    found = [ar.zeros(np.broadcast_shapes(np.shape(slope), np.shape(low)))] * 2
    for factor, end in ((kink, low), (1, high)):
        small, large = (d * end for d in _difference(ar, factor, slope))
        still = (small == 0) & (large == 0)
        lesser, greater = np.minimum(small, large), np.maximum(small, large)
        found[0] = np.minimum(found[0], np.where(still, lesser, ar.down(lesser)))
        found[1] = np.maximum(found[1], np.where(still, greater, ar.up(greater)))
    return found


def _curved(name: str, low: Array, high: Array, slope: Array) -> tuple[Array, Array]:
    """Offsets of lines below and above sigmoid or tanh on [low, high], in float64."""
    down, up = FLOATS.down, FLOATS.up
    low, high, slope = low[..., None], high[..., None], slope[..., None]
    edges = low + (high - low) * (np.arange(PIECES + 1) / PIECES)
    edges = np.clip(edges, low, high)
    edges[..., :1], edges[..., -1:] = low, high
    edges = np.maximum.accumulate(edges, axis=-1)
    start, stop = edges[..., :-1], edges[..., 1:]
    middle = start * 0.5 + stop * 0.5
    half = up(np.maximum(stop - middle, middle - start))
    near = np.where((start <= 0) & (stop >= 0), 0.0, np.minimum(np.abs(start), np.abs(stop)))
    slowest, fastest = steepness(name, near, np.maximum(np.abs(start), np.abs(stop)))
    drift = up(np.maximum(np.abs(fastest - slope), np.abs(slope - slowest)))
    least, most = s_shaped(name, middle)
    line, drift = slope * middle, up(drift * half)
    below, above = down(least - up(line)) - drift, up(most - down(line)) + drift
    return down(below).min(-1), up(above).max(-1)


class Engine:
    """Enclosures of the values of a network, and lower bounds of linear forms on them.

    Args:
        network: steps in order.
        region: ends of each input.
        slopes: step position -> slopes (below, above) of its lines.
        balls: input position -> centre, radius and norm (1 or 2) of a ball that it lies in, too.
    """

    def __init__(
        self, network: Any, region: list[tuple[Array, Array]], slopes: Any, balls: Any = None
    ) -> None:
        self.balls: dict[int, tuple[Array, Any, int]] = balls or {}
        self.network, self.ar, self.slopes = network, network.arithmetic, slopes
        self.ends: dict[int, tuple[Array, Array]] = {}
        self._reach: dict[tuple[int, int], Array] = {}
        self._lines: dict[int, Any] = {}
        for position, (low, high) in enumerate(region):
            require(bool(np.all(low <= high)), "the region is empty")
            self.set(position, low, high)

    def set(self, at: int, low: Array, high: Array) -> None:
        what = f"bounds of {self.network.steps[at].name}"
        self.ends[at] = self.ar.checked(low, what), self.ar.checked(high, what)

    def magnitude(self, at: int) -> Array:
        low, high = self.ends[at]
        return np.maximum(np.abs(low), np.abs(high))

    def forward(self, at: int) -> tuple[Array, Array]:
        """The interval of a step from those of its operands."""
        step, ar = self.network.steps[at], self.ar
        if step.curve is not None:
            return self._curve_ends(step)
        if step.windows is not None:
            low, high = self._taken(step)
            return low.max(1), high.max(1)
        total = (ar.zeros(step.size),) * 2 if step.bias is None else step.bias
        for source, map_ in step.parts:
            low, high = self._affine(map_, *self.ends[source])
            total = ar.down(total[0] + low), ar.up(total[1] + high)
        return total

    def _center(self, low: Array, high: Array) -> tuple[Array, Array]:
        center = low / 2 + high / 2
        return center, self.ar.up(np.maximum(high - center, center - low))

    def _affine(self, map_: Any, low: Array, high: Array) -> tuple[Array, Array]:
        ar = self.ar
        center, radius = self._center(low, high)
        error = ar.gamma(map_.terms) + map_.relative
        wide = ar.up(radius + ar.up(error * ar.up(np.abs(center) + radius)))
        spread = ar.above(map_.absolute().apply(wide[None])[0], map_.terms)
        middle = map_.apply(center[None])[0]
        return ar.down(middle - spread), ar.up(middle + spread)

    def _curve_ends(self, step: Any) -> tuple[Array, Array]:
        low, high = self.ends[step.source]
        if step.curve != "kinked":
            low, high = self._floats(low, high)
            low, high = s_shaped(step.curve, low)[0], s_shaped(step.curve, high)[1]
            return self.ar.array(low), self.ar.array(high)
        values = [(np.maximum(e, 0), np.minimum(e, 0) * step.kink) for e in (low, high)]
        below = [r + (n if step.kink in (0, 1) else self.ar.down(n)) for r, n in values]
        above = [r + (n if step.kink in (0, 1) else self.ar.up(n)) for r, n in values]
        inside = (low < 0) & (high > 0)
        least, most = np.minimum(*below), np.maximum(*above)
        return np.where(inside, np.minimum(least, 0), least), most

    def _floats(self, low: Array, high: Array) -> tuple[Array, Array]:
        if not self.ar.exact:
            return low, high
        return (np.nextafter(low.astype(np.float64), -np.inf),
                np.nextafter(high.astype(np.float64), np.inf))  # fmt: skip

    def _taken(self, step: Any) -> tuple[Array, Array]:
        """`[outputs, taps]` ends of what a maximum reads, −inf in the padding."""
        absent = step.windows < 0
        low, high = (np.where(absent, -np.inf, end[step.windows]) for end in self.ends[step.source])
        return low, high

    def line(self, at: int, slope: Array, side: int) -> tuple[Array, Array]:
        """Slope and offset of a line below (side 0) or above (side 1) a curve."""
        step, (low, high) = self.network.steps[at], self.ends[self.network.steps[at].source]
        if step.curve != "kinked":
            ends = [e.astype(np.float64) for e in (*self._floats(low, high), slope)]
            return slope, self.ar.array(_curved(step.curve, *ends)[side])
        bent = (low < 0) & (high > 0)
        offset = _kinked(
            self.ar, np.where(bent, low, -1), np.where(bent, high, 1), slope, step.kink
        )[side]
        straight = np.where(low >= 0, 1, step.kink)
        return np.where(bent, slope, straight), np.where(bent, offset, 0 * offset)

    def lines(self, at: int) -> list[tuple[Array, Array]]:
        """The recorded lines of a curve, below and above."""
        if at not in self._lines:
            require(at in self.slopes, f"no slopes recorded for {self.network.steps[at].name}")
            pair = self.slopes[at]
            self._lines[at] = [self.line(at, slope, side) for side, slope in enumerate(pair)]
        return self._lines[at]

    def backward(
        self, at: int, rows: Array, chosen: dict[int, Array] | None = None,
        trace: dict[int, Array] | None = None,
    ) -> Array:  # fmt: skip
        """Lower bounds of `rows·v` for the value v of a step, over the whole region.

        Wherever one value separates the step from the region, its enclosure gives a bound as
        well, so that no interval proof is lost; the best for each row is returned.

        Args:
            at: position of the step.
            rows: `[rows, elements]`, taken as exact.
            chosen: step position -> `[rows, elements]`, slopes of lines below for these rows.
            trace: filled with the coefficients of every step that the walk met.
        """
        total, waiting = self.ar.zeros(len(rows)), {at: [rows]}
        best: Array = None
        for here in range(at, -1, -1):
            if here not in waiting:
                continue
            form, total = self._sum(here, waiting.pop(here), total)
            if trace is not None:
                trace[here] = form
            if not waiting and here != at:
                bound = self.ar.down(total + self.least(form, here))
                best = bound if best is None else np.maximum(best, bound)
            step = self.network.steps[here]
            if step.curve is not None:
                below = None if chosen is None else chosen.get(here)
                new, total = self._bent(here, form, total, below)
                waiting.setdefault(step.source, []).append(new)
            elif step.windows is not None:
                new, total = self._largest(here, form, total)
                waiting.setdefault(step.source, []).append(new)
            elif step.parts:
                if step.bias is not None:
                    bias = np.where(form >= 0, form * step.bias[0], form * step.bias[1])
                    total = self.ar.down(total + self.ar.sum_below(bias))
                for part, (source, map_) in enumerate(step.parts):
                    reach = self._reach_of(here, part)
                    new, total = self._through(form, total, map_, reach, self.magnitude(source))
                    waiting.setdefault(source, []).append(new)
            else:
                total = self.ar.down(total + self.least(form, here))
        total = self.ar.checked(total, "backward bounds")
        return total if best is None else np.maximum(total, best)

    def least(self, form: Array, at: int) -> Array:
        """Lower bounds of `form·v` from the enclosure of v alone: `|v − c| <= r`, or `‖v − c‖ <= r`
        and the dual norm."""
        ar, (center, radius) = self.ar, self._center(*self.ends[at])
        n = len(center) + 1
        wide = ar.up(radius + ar.up(ar.gamma(n) * np.abs(center)))
        least = ar.down(form @ center - ar.sum_above(form, wide))
        if at in self.balls:
            center, reach, norm = self.balls[at]
            near = form @ center - ar.sum_above(form, ar.up(ar.gamma(n) * np.abs(center)))
            spread = ar.up(ar.dual_norm(form, norm) * reach)
            least = np.maximum(least, ar.down(ar.down(near) - spread))
        return least

    def _sum(self, at: int, parts: list[Array], total: Array) -> tuple[Array, Array]:
        """Readers of one value add their forms, each addition with one rounding."""
        form = parts[0]
        for part in parts[1:]:
            form = form + part
            drop = self.ar.up(self.ar.u * self.ar.sum_above(form, self.magnitude(at)))
            total = self.ar.down(total - drop)
        return form, total

    def _reach_of(self, at: int, part: int) -> Array:
        """`|M|·mag(u)` of an affine part, one product for all rows."""
        if (at, part) not in self._reach:
            source, map_ = self.network.steps[at].parts[part]
            reach = map_.absolute().apply(self.magnitude(source)[None])[0]
            self._reach[at, part] = self.ar.above(reach, map_.terms)
        return self._reach[at, part]

    def _through(
        self, form: Array, total: Array, map_: Any, reach: Array, magnitude: Array
    ) -> tuple[Array, Array]:
        ar = self.ar
        error = ar.gamma(map_.terms_back) + map_.relative
        drop = ar.sum_above(form, ar.up(error * reach))
        tiny = ar.up(4 * map_.terms_back * ar.eta * ar.above(magnitude.sum(), len(magnitude)))
        return map_.transpose(form), ar.down(total - ar.up(drop + tiny))

    def _bent(self, at: int, form: Array, total: Array, below: Any) -> tuple[Array, Array]:
        """The line below where the coefficient is positive, the one above elsewhere."""
        ar, source = self.ar, self.network.steps[at].source
        lines = self.lines(at)
        under = lines[0] if below is None else self.line(at, below, 0)
        slope, offset = (np.where(form >= 0, *pair) for pair in zip(under, lines[1], strict=True))
        new = form * slope
        magnitude = self.magnitude(source)
        drop = ar.up(ar.u * ar.sum_above(new, magnitude))
        tiny = ar.up(4 * ar.eta * ar.above(magnitude.sum(), len(magnitude)))
        total = ar.down(total + ar.sum_below(form * offset))
        return new, ar.down(total - ar.up(drop + tiny))

    def winners(self, at: int) -> tuple[Array, Array, Array]:
        """Of each window the element with the largest lower end, whether it is the maximum
        everywhere, and the largest upper end."""
        step = self.network.steps[at]
        low, high = self._taken(step)
        best = low.argmax(1)[:, None]
        index = np.take_along_axis(step.windows, best, 1)
        others = np.where(np.arange(low.shape[1]) == best, -np.inf, high)
        return index, (others <= np.take_along_axis(low, best, 1)).all(1), high.max(1)

    def _largest(self, at: int, form: Array, total: Array) -> tuple[Array, Array]:
        """A maximum is at least any of its elements, and at most the largest upper end."""
        index, always, top = self.winners(at)
        follows = (form >= 0) | always
        total = self.ar.down(total + self.ar.sum_below(np.where(follows, 0 * top, form * top)))
        source = self.network.steps[at].source
        map_ = self.network.gather(index, self.network.steps[source].size)
        magnitude = self.magnitude(source)
        reach = magnitude[index[:, 0]]
        return self._through(np.where(follows, form, 0 * form), total, map_, reach, magnitude)
