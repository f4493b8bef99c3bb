"""Training curves: as SVG for the report (no dependencies) and as PNG where matplotlib is there."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

Records = Sequence[Mapping[str, Any]]

WIDTH, HEIGHT = 560, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 46, 32


@dataclass(frozen=True)
class Line:
    """One curve: the field of a record it shows, its name, colour and whether it is dashed."""

    field: str
    label: str
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """Curves that share one axis; `percent` shows fractions as percentages."""

    title: str
    lines: tuple[Line, ...]
    percent: bool = False


BLUE, AMBER, GREEN, RED = "#2563eb", "#d97706", "#15803d", "#be123c"
PANELS = (
    Panel(
        "Accuracy",
        (
            Line("clean_accuracy", "clean, training", BLUE, dashed=True),
            Line("certified_accuracy", "certified, training", GREEN, dashed=True),
            Line("test_clean", "clean, held out", BLUE),
            Line("test_certified", "certified, held out", GREEN),
        ),
        percent=True,
    ),
    Panel(
        "Loss",
        (
            Line("loss", "mixed", RED),
            Line("clean_loss", "clean", BLUE),
            Line("bound_loss", "worst case", GREEN),
        ),
    ),
    Panel("Weight of the bound loss", (Line("alpha", "α", AMBER),)),
    Panel("Radius", (Line("eps", "ε", AMBER),)),
)


def points(records: Records, field: str) -> list[tuple[float, float]]:
    """(epoch, value) of the records that have a finite value."""
    return [
        (float(record["epoch"]), float(record[field]))
        for record in records
        if isinstance(record.get(field), int | float) and math.isfinite(record[field])
    ]


def shown(records: Records) -> list[Panel]:
    """The panels with the lines that have something to show."""
    panels = []
    for panel in PANELS:
        lines = tuple(line for line in panel.lines if points(records, line.field))
        if lines:
            panels.append(Panel(panel.title, lines, panel.percent))
    return panels


def svg_panel(panel: Panel, records: Records) -> str:
    """One panel as an SVG element; text takes the page's colour."""
    curves = {line.field: points(records, line.field) for line in panel.lines}
    values = [value for curve in curves.values() for _, value in curve]
    ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] if panel.percent else nice_ticks(0.0, max(values))
    low, high = min(ticks[0], *values), max(ticks[-1], *values)
    last = max(epoch for curve in curves.values() for epoch, _ in curve)
    first = min(1.0, *(epoch for curve in curves.values() for epoch, _ in curve))

    def place(epoch: float, value: float) -> tuple[float, float]:
        across = (epoch - first) / ((last - first) or 1.0)
        up = (value - low) / ((high - low) or 1.0)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(panel.title)}">',
        f'<text x="0" y="14" class="title">{escape(panel.title)}</text>',
        *_legend(panel),
        *_axes(panel, ticks, sorted({round(e) for e in nice_ticks(first, last)} | {1}), place),
    ]
    for line in panel.lines:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*at) for at in curves[line.field]))
        dash = ' stroke-dasharray="4 3" stroke-opacity="0.65"' if line.dashed else ""
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2" '
            f'stroke-linejoin="round"{dash}/>'
        )
    return "\n".join([*parts, "</svg>"])


def _legend(panel: Panel) -> list[str]:
    parts, x = [], 0.0
    for line in panel.lines if len(panel.lines) > 1 else ():
        dash = ' stroke-dasharray="4 3"' if line.dashed else ""
        parts.append(
            f'<line x1="{x:.0f}" x2="{x + 16:.0f}" y1="29" y2="29" stroke="{line.colour}" '
            f'stroke-width="2.5"{dash}/>'
            f'<text x="{x + 20:.0f}" y="33">{escape(line.label)}</text>'
        )
        x += 32 + 5.6 * len(line.label)
    return parts


def _axes(panel: Panel, ticks: Sequence[float], epochs: Sequence[int], place: Any) -> list[str]:
    parts = []
    for tick in ticks:
        _, y = place(1.0, tick)
        text = f"{tick:.0%}" if panel.percent else f"{tick:g}"
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        )
    for epoch in epochs:
        x, _ = place(epoch, ticks[0])
        if LEFT - 1 <= x <= WIDTH - RIGHT + 1:
            parts.append(
                f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{epoch}</text>'
            )
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">epoch</text>')
    return parts


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that cover [low, high]."""
    span = (high - low) or abs(high) or 1.0
    high = low + span
    raw = span / count
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= raw * 0.999)
    start = math.floor(low / step)
    # Rounding removes the noise of multiplying by a decimal fraction.
    digits = max(0, 1 - math.floor(math.log10(step)))
    number = math.ceil((high - start * step) / step - 1e-9)
    return [round((start + i) * step, digits) for i in range(number + 1)]


def save_png(path: Path, records: Records, title: str) -> bool:
    """Draw all panels into a PNG file; returns False where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None or not records:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    panels = shown(records)
    # Without pyplot: no global state, no display, no interference with the user's figures.
    figure = Figure(figsize=(11, 3.4 * math.ceil(len(panels) / 2)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(math.ceil(len(panels) / 2), 2, index + 1)
        for line in panel.lines:
            epochs, values = zip(*points(records, line.field), strict=True)
            style: dict[str, Any] = {"linestyle": "--", "alpha": 0.65} if line.dashed else {}
            axes.plot(epochs, values, color=line.colour, label=line.label, linewidth=1.8, **style)
        axes.set_title(panel.title, loc="left", fontsize=11)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0.0)
        if panel.percent:
            axes.set_ylim(0.0, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(panel.lines) > 1:
            axes.legend(frameon=False, fontsize=8.5)
    figure.savefig(path, dpi=130)
    return True
