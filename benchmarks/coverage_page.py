"""The page of `benchmarks/coverage.py`: what was tried, what was found, and what it shows."""

from __future__ import annotations

from collections import Counter
from datetime import date
from importlib.metadata import version
from typing import Any

COLUMNS = (
    "model",
    "method",
    "input",
    "float",
    "M params",
    "nodes",
    "compile s",
    "bound s",
    "GB",
    "mean width",
    "width 0: error",
    "outside",
    "outside, strict",
    "note",
)
TITLES = {
    "classification": "Classifiers",
    "segmentation": "Segmentation",
    "video": "Video",
}
_HEAD = """# Coverage

Which of torchvision's models can be bounded: random weights, evaluation mode, a dynamic batch,
ε = {eps:g} around one random image clipped to [0, 1]; ten outputs (segmentation: two classes for
each pixel). The smallest inputs that the architectures take, because widths, time and memory grow
with depth and size, and whether an op has a rule does not. One process for each model and method,
with a limit on processor time ({seconds} s) and on memory ({gigabytes} GB).

What this shows is that these models are captured, that each of their ops has a rule and that the
bounds enclose what was sampled. It does not show useful bounds: widths of untrained networks are
astronomical, as an interval grows by a factor with every layer. Sampled points are then a weak
check. The column `width 0` is a stronger one: a region of no width must give the model's output,
and the error is the largest difference as a share of the largest output.

- `outside`: sampled points (random ones and corners, evaluated in the dtype of the bounds) that
  leave the bounds by more than the rounding that the ops declare, propagated through the network.
  Where that allowance is not finite, no point can be outside by it, and the note says so.
- `outside, strict`: the same with no allowance at all.
- `float` is 64 where bounds in float32 overflow, be it only with `ibp`.
- `GB` is the most that the process held, Python and torch (about 0.7) included.
- Times are processor time of one thread; "clock" marks those of an earlier run by the clock, beside
  other work, which are too long.

Networks that are not in a library (residual and recurrent ones, graphs, sets, flows, splines,
control loops, several inputs and outputs) are bounded by
`tests/soundness/test_ordinary_networks.py`, in both dtypes, with batches of 1 and 3.

```
{commands}
```

{date}, torch {torch}, torchvision {torchvision}.
"""


def page(results: list[dict[str, Any]], totals: dict[str, int], eps: float) -> str:
    """The page as text; `totals` says how many models a family has."""
    families = [f for f in totals if any(item["family"] == f for item in results)]
    head = _HEAD.format(
        eps=eps,
        commands="\n".join(
            f"python benchmarks/coverage.py --family {family} --write docs/coverage.md"
            for family in families
        ),
        seconds=_spread(results, "limit_s"),
        gigabytes=_spread(results, "limit_gb"),
        date=f"{date.today():%-d %B %Y}",
        torch=version("torch"),
        torchvision=version("torchvision"),
    )
    parts = [head]
    for family in families:
        own = [item for item in results if item["family"] == family]
        parts += [f"## {TITLES[family]}\n", counts(own, totals[family]), "", table(own), ""]
    return "\n".join(parts)


def _spread(results: list[dict[str, Any]], field: str) -> str:
    """The least and the largest value of a field, once where they are equal."""
    values = sorted({item[field] for item in results if field in item})
    return " to ".join(f"{value:g}" for value in dict.fromkeys(values[:1] + values[-1:]))


def counts(results: list[dict[str, Any]], total: int) -> str:
    """How many models each method bounded, and the reasons of the others."""
    lines = []
    for method in dict.fromkeys(item["method"] for item in results):
        own = [item for item in results if item["method"] == method]
        done = [item for item in own if "error" not in item]
        double = sum(item.get("dtype") == "float64" for item in done)
        points = sum(item.get("points", 0) for item in done)
        missed = sum(item.get("missed", 0) for item in done)
        strict = sum(item.get("strict", 0) for item in done)
        lines.append(
            f"- `{method}`: {len(done)} of {total} bounded ({len(own)} tried), {double} of them in "
            f"float64. {missed} of {points} sampled points outside, {strict} without an allowance "
            "for rounding."
        )
        reasons = Counter(item["error"] for item in own if "error" in item)
        if len(own) < total:
            lines.append(f"    - {total - len(own)} not tried yet; nothing is said about them.")
        lines += [f"    - {count} × {reason}" for reason, count in reasons.most_common()]
    return "\n".join(lines)


def table(results: list[dict[str, Any]]) -> str:
    rows = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    rows += ["| " + " | ".join(_cells(item)) + " |" for item in results]
    return "\n".join(rows)


def _cells(item: dict[str, Any]) -> list[str]:
    cells = [item["model"], item["method"]]
    if "error" in item:
        return [*cells, *[""] * (len(COLUMNS) - 3), item["error"].replace("|", "/")]
    points = item.get("points", 0)
    vacuous = points and item.get("allowed") in (float("inf"), float("nan"))
    return [
        *cells,
        "×".join(map(str, item.get("input", ()))),
        item["dtype"].removeprefix("float"),
        f"{item['parameters'] / 1e6:.1f}" if "parameters" in item else "",
        str(item.get("nodes", "")),
        f"{item['compile_s']:.1f}",
        f"{item['bound_s']:.1f}",
        f"{item['gb']:.1f}",
        f"{item['width']:.2g}" if item["finite"] else "not finite",
        f"{item['point_error']:.0e}" if "point_error" in item else "",
        f"{item['missed']} of {points}" if points else "",
        f"{item['strict']}" if points else "",
        ", ".join(
            note
            for note, holds in (("allowance not finite", vacuous), ("clock", "limit_s" not in item))
            if holds
        ),
    ]
