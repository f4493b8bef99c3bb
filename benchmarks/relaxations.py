"""How far apart the two lines of a relaxation are, against the closest pair there is.

Over an interval the mean gap between two lines is their gap at the middle, so the best pair has
the gap between the concave and the convex hull there. Prints the table of `docs/relaxations.md`.

    python benchmarks/relaxations.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from boundgraph import ops
from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import Lines
from boundgraph.relaxations.fallback import Fallback
from boundgraph.relaxations.relaxation import Scalar
from boundgraph.testing._ops import relaxed_lines

COUNT, GRID = 4000, 257
Fn = Callable[[Tensor], Tensor]


def intervals(low: float, high: float, widest: float) -> Interval:
    """Random intervals in a range, of widths up to `widest`."""
    generator = torch.Generator().manual_seed(0)
    middle, width = torch.rand(2, COUNT, generator=generator, dtype=torch.float64)
    center, radius = low + middle * (high - low), 0.5 * widest * width
    return Interval((center - radius).clamp(min=low), (center + radius).clamp(max=high))


def gap(lines: Lines, x: Interval) -> Tensor:
    """Mean distance between the two lines over each interval."""
    middle = x.center
    upper = lines.upper_slope * middle + lines.upper_offset
    return upper - (lines.lower_slope * middle + lines.lower_offset)


def best(fn: Fn, x: Interval) -> Tensor:
    """The distance of the two hulls at the middle, from points on a grid."""
    share = torch.linspace(0.0, 1.0, GRID, dtype=torch.float64)
    points = x.lower[:, None] * (1.0 - share) + x.upper[:, None] * share
    values, half = fn(points), GRID // 2
    after = torch.arange(0, half + 1, dtype=torch.float64)
    left, right = values[:, : half + 1].flip(1)[:, :, None], values[:, half:][:, None, :]
    near, far = after[:, None], after[None, :]
    weight = torch.where(near + far > 0, far / (near + far).clamp(min=1.0), 0.5)
    heights = (left * weight + right * (1.0 - weight)).flatten(1)
    return heights.amax(1) - heights.amin(1)


def row(name: str, what: str, lines: Lines, x: Interval, optimum: Tensor) -> str:
    found, wide = gap(lines, x), optimum > 1e-9
    share = (found[wide] / optimum[wide]).median()
    return (
        f"| {name} | {what} | {float(found.mean()):.4f} | "
        f"{float(found.sum() / optimum.sum()):.2f} | {float(share):.2f} |"
    )


def by_parallel(spec: ops.OpSpec, x: Interval, **attrs: float) -> Lines:
    """The two parallel lines of an op's symbolic rule."""
    slope, middle, half = relaxed_lines(spec, x, attrs)
    return Lines(slope, middle - half, slope, middle + half)


def relu_with(slope: Tensor, x: Interval) -> Lines:
    """The chord above and a line through the origin below."""
    low, high = x.lower.clamp(max=0.0), x.upper.clamp(min=0.0)
    chord = high / (high - low).clamp(min=1e-30)
    kept = torch.where(x.lower >= 0, 1.0, torch.where(x.upper <= 0, 0.0, slope))
    return Lines(kept, torch.zeros_like(low), chord, -chord * low)


def scalar_of(spec: ops.OpSpec, **attrs: float) -> Scalar:
    """An op as the fallback sees one that it knows nothing of but the interval rule."""
    assert spec.interval is not None
    rule = spec.interval
    return Scalar(
        lambda points: spec.concrete(points, **attrs),
        lambda x: rule(x, **attrs),
        lambda points, values: 8.0 * values.abs(),
    )


def known() -> list[str]:
    rows = []
    for name, attrs in (
        ("relu", {}),
        ("leaky_relu", {"negative_slope": 0.1}),
        ("sigmoid", {}),
        ("tanh", {}),
        ("gelu", {}),
        ("exp", {}),
        ("sin", {}),
    ):
        spec = ops.get(name)
        assert spec is not None and spec.lines is not None
        x = intervals(-4.0, 4.0, 4.0)
        optimum = best(lambda points, s=spec, a=attrs: s.concrete(points, **a), x)
        rows.append(row(name, "its own lines", spec.lines(x, **attrs), x, optimum))
        if name == "relu":
            up = x.upper / (x.upper - x.lower)
            for what, slope in (
                ("lower slope 0", torch.zeros_like(up)),
                ("lower slope 1", torch.ones_like(up)),
                ("adaptive lower slope", (x.upper > -x.lower).double()),
            ):
                rows.append(row(name, what, relu_with(slope, x), x, optimum))
        rows.append(row(name, "parallel lines", by_parallel(spec, x, **attrs), x, optimum))
        found = Fallback().lines(scalar_of(spec, **attrs), x)
        rows.append(row(name, "fallback, interval rule only", found, x, optimum))
    return rows


def unseen() -> list[str]:
    """Functions that no relaxation was made for, with enclosures from those of their parts."""

    def rule(name: str) -> Callable[..., Interval]:
        spec = ops.get(name)
        assert spec is not None and spec.interval is not None
        return spec.interval

    square, exp, neg, mul = rule("square"), rule("exp"), rule("neg"), rule("mul")
    sin, log1p, sigmoid = rule("sin"), rule("log1p"), rule("sigmoid")
    cases: dict[str, tuple[Fn, Callable[[Interval], Interval]]] = {
        "x·exp(−x²)": (lambda x: x * (-x * x).exp(), lambda x: mul(x, exp(neg(square(x))))),
        "log(1 + x²)": (lambda x: (x * x).log1p(), lambda x: log1p(square(x))),
        "x²·σ(x)": (lambda x: x * x * x.sigmoid(), lambda x: mul(square(x), sigmoid(x))),
        "sin(x²)": (lambda x: (x * x).sin(), lambda x: sin(square(x))),
    }
    rows = []
    for name, (fn, enclosure) in cases.items():
        x = intervals(-2.0, 2.0, 2.0)
        f = Scalar(fn, enclosure, lambda points, values: 64.0 * values.abs())
        optimum = best(fn, x)
        rows.append(row(name, "fallback", Fallback().lines(f, x), x, optimum))
        rows.append(row(name, "its range alone", Lines.constant(enclosure(x)), x, optimum))
    return rows


def main() -> None:
    torch.set_num_threads(1)
    print("| function | lines | mean gap | of the best: total | median |\n|---|---|---|---|---|")
    print("\n".join((*known(), *unseen())))


if __name__ == "__main__":
    main()
