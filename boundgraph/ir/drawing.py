"""Draw a program as a self-contained SVG: boxes in layers, arrows downwards.

The layout is Sugiyama's in small: layers by longest path, an edge over several layers
becomes a chain of bends, neighbours' means order each layer, and a least-squares fit
sets the places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from boundgraph.ir.printer import print_node
from boundgraph.ir.program import Program
from boundgraph.ir.types import IntervalType, SymbolicType, TensorType

BOX_HEIGHT, LAYER_GAP, SIDE_GAP, MARGIN = 46, 38, 28, 24
BEND_WIDTH = 14
ORDER_SWEEPS, PLACE_SWEEPS = 24, 120

# kind: (legend, fill, stroke)
COLOURS = {
    "tensor": ("tensor", "#eef2f7", "#5b7083"),
    "interval": ("interval", "#fdecc8", "#b7791f"),
    "symbolic": ("symbolic", "#d9ecdf", "#2f7d4f"),
    "param": ("parameter", "#f1e7f6", "#7d5a94"),
    "return": ("", "#334155", "#334155"),
}


@dataclass
class _Box:
    """A vertex of the drawing, or a bend of a long edge where `kind` is empty."""

    kind: str
    title: str = ""
    subtitle: str = ""
    hover: str = ""
    layer: int = 0
    x: float = 0.0
    above: list[_Box] = field(default_factory=list)
    below: list[_Box] = field(default_factory=list)

    @property
    def width(self) -> float:
        if not self.kind:
            return BEND_WIDTH
        # 7.4 and 6.7: widths of a character of the two font sizes below, with some room.
        return max(64.0, 24 + 7.4 * len(self.title), 24 + 6.7 * len(self.subtitle))

    @property
    def top(self) -> float:
        return MARGIN + self.layer * (BOX_HEIGHT + LAYER_GAP)

    @property
    def height(self) -> float:
        return 26.0 if self.kind == "return" else BOX_HEIGHT


def to_svg(program: Program, *, params: bool = False) -> str:
    """The program as an SVG document; a box's full text shows where the pointer rests.

    Args:
        program: any program.
        params: draw the parameters too.
    """
    boxes, edges = _graph(program, params)
    layers = _layers(boxes, edges)
    _order(layers)
    _place(layers)
    return _render(layers, edges)


def _graph(program: Program, params: bool) -> tuple[list[_Box], list[tuple[_Box, _Box]]]:
    boxes: dict[str, _Box] = {}
    edges: list[tuple[_Box, _Box]] = []
    for value in (*program.inputs, *(program.params if params else ())):
        colour = "param" if value.param else _kind(value.type)
        hover = f"{value}: {value.type}"
        boxes[str(value)] = _Box(colour, str(value), str(value.type), hover)
    for node in program.nodes:
        value = node.result
        # The op is what a reader looks for; the name is in the hover text unless it differs.
        title = node.op if value.name == node.op else f"{value} = {node.op}"
        box = _Box(_kind(value.type), title, str(value.type), print_node(node))
        operands = [boxes[str(v)] for v in dict.fromkeys(node.inputs) if str(v) in boxes]
        edges += [(operand, box) for operand in operands]
        boxes[str(value)] = box
    end = _Box("return", "return")
    outputs = dict.fromkeys(program.outputs)
    edges += [(boxes[str(value)], end) for value in outputs if str(value) in boxes]
    return [*boxes.values(), end], edges


def _kind(type_: TensorType) -> str:
    if isinstance(type_, IntervalType):
        return "interval"
    return "symbolic" if isinstance(type_, SymbolicType) else "tensor"


def _layers(boxes: list[_Box], edges: list[tuple[_Box, _Box]]) -> list[list[_Box]]:
    """Layers from top to bottom, with the bends of long edges put in and all linked."""
    operands: dict[int, list[_Box]] = {id(box): [] for box in boxes}
    readers: dict[int, list[_Box]] = {id(box): [] for box in boxes}
    for start, end in edges:
        operands[id(end)].append(start)
        readers[id(start)].append(end)
    # `boxes` is in execution order, so one pass finds the longest path to each.
    for box in boxes:
        box.layer = max((other.layer + 1 for other in operands[id(box)]), default=0)
    last = boxes[-1]
    last.layer = max((box.layer + 1 for box in boxes[:-1]), default=0)
    for box in boxes[:-1]:
        # What has no operands (an input, a parameter) moves down to its first reader.
        if not operands[id(box)]:
            box.layer = max(0, min((r.layer for r in readers[id(box)]), default=1) - 1)
    layers: list[list[_Box]] = [[] for _ in range(last.layer + 1)]
    for box in boxes:
        layers[box.layer].append(box)
    for start, end in edges:
        upper = start
        for layer in range(start.layer + 1, end.layer):
            bend = _Box("", layer=layer)
            layers[layer].append(bend)
            _link(upper, bend)
            upper = bend
        _link(upper, end)
    return layers


def _link(upper: _Box, lower: _Box) -> None:
    upper.below.append(lower)
    lower.above.append(upper)


def _order(layers: list[list[_Box]]) -> None:
    """Sort layers by the mean rank of their neighbours, down and up, to avoid crossings."""
    best, fewest = [list(layer) for layer in layers], _crossings(layers)
    for sweep in range(ORDER_SWEEPS):
        down = sweep % 2 == 0
        pairs = list(pairwise(layers)) if down else list(pairwise(layers[::-1]))
        for fixed, moved in pairs:
            rank = {id(box): float(at) for at, box in enumerate(fixed)}
            mean = {}
            for at, box in enumerate(moved):
                around = [rank[id(other)] for other in (box.above if down else box.below)]
                mean[id(box)] = sum(around) / len(around) if around else float(at)
            moved.sort(key=lambda box: mean[id(box)])
        crossings = _crossings(layers)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    for layer, chosen in zip(layers, best, strict=True):
        layer[:] = chosen


def _crossings(layers: list[list[_Box]]) -> int:
    total = 0
    for upper, lower in pairwise(layers):
        ranks = {id(box): rank for rank, box in enumerate(lower)}
        ends = [
            ranks[id(end)] for box in upper for end in sorted(box.below, key=lambda b: ranks[id(b)])
        ]
        total += sum(first > second for i, first in enumerate(ends) for second in ends[i + 1 :])
    return total


def _place(layers: list[list[_Box]]) -> None:
    """Set `x` (a box's middle): near the mean of its neighbours, in order, not overlapping."""
    for layer in layers:
        _spread(layer, [0.0] * len(layer))
    for sweep in range(PLACE_SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wanted = []
            for box in layer:
                around = [*box.above, *box.below]
                wanted.append(sum(b.x for b in around) / len(around) if around else box.x)
            _spread(layer, wanted)
    left = min(box.x - box.width / 2 for layer in layers for box in layer)
    for layer in layers:
        for box in layer:
            box.x += MARGIN - left


def _spread(layer: list[_Box], wanted: Sequence[float]) -> None:
    """The places nearest to the wanted ones (least squares) that keep order and gaps.

    Shifted by the gaps to its left, a place may not be smaller than the one before it:
    that is isotonic regression, solved by pooling neighbours that violate it.
    """
    shifts, shift = [], 0.0
    for index, box in enumerate(layer):
        if index:
            shift += (layer[index - 1].width + box.width) / 2 + SIDE_GAP
        shifts.append(shift)
    pools: list[tuple[float, int]] = []
    for target, shift in zip(wanted, shifts, strict=True):
        mean, count = target - shift, 1
        while pools and pools[-1][0] > mean:
            other, others = pools.pop()
            mean = (mean * count + other * others) / (count + others)
            count += others
        pools.append((mean, count))
    means = [mean for mean, count in pools for _ in range(count)]
    for box, mean, shift in zip(layer, means, shifts, strict=True):
        box.x = mean + shift


def _render(layers: list[list[_Box]], edges: list[tuple[_Box, _Box]]) -> str:
    boxes = [box for layer in layers for box in layer if box.kind]
    kinds = [kind for kind in COLOURS if COLOURS[kind][0] and any(b.kind == kind for b in boxes)]
    bottom = max(box.top + box.height for box in boxes)
    right = max(box.x + box.width / 2 for layer in layers for box in layer)
    width = max(right + MARGIN, 2 * MARGIN + 100 * len(kinds))
    height = bottom + 2 * MARGIN + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" '
        'font-family="ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace">',
        '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 1 L10 5 L0 9 z" fill="#64748b"/></marker>'
        "</defs>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    parts += [_arrow(start, step) for start, _ in _unique(edges) for step in start.below]
    parts += [_draw(box) for box in boxes]
    for index, kind in enumerate(kinds):
        legend, fill, stroke = COLOURS[kind]
        x, y = MARGIN + 100 * index, bottom + MARGIN
        parts.append(
            f'<rect x="{x}" y="{y:.0f}" width="14" height="14" rx="3" fill="{fill}" '
            f'stroke="{stroke}"/>'
            f'<text x="{x + 20}" y="{y + 11:.0f}" font-size="12" fill="#334155">{legend}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _unique(edges: list[tuple[_Box, _Box]]) -> list[tuple[_Box, _Box]]:
    """One edge per start: its arrows are found by following `below`."""
    return list({id(edge[0]): edge for edge in edges}.values())


def _arrow(start: _Box, step: _Box) -> str:
    """A curve from a box through the bends of one edge to the box at its end."""
    x, y = start.x, start.top + start.height
    path = [f"M{x:.1f} {y:.1f}"]
    while True:
        middle = (y + step.top) / 2
        path.append(f"C{x:.1f} {middle:.1f} {step.x:.1f} {middle:.1f} {step.x:.1f} {step.top:.1f}")
        if step.kind:
            break
        x, y = step.x, step.top + BOX_HEIGHT
        path.append(f"L{x:.1f} {y:.1f}")
        step = step.below[0]
    return (
        f'<path d="{" ".join(path)}" fill="none" stroke="#64748b" stroke-width="1.4" '
        'marker-end="url(#arrow)"/>'
    )


def _draw(box: _Box) -> str:
    _, fill, stroke = COLOURS[box.kind]
    left, ink = box.x - box.width / 2, "#ffffff" if box.kind == "return" else "#0f172a"
    title = box.top + (17 if box.kind == "return" else 20)
    parts = [
        f"<g><title>{escape(box.hover or box.title)}</title>",
        f'<rect x="{left:.1f}" y="{box.top:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" '
        f'rx="7" fill="{fill}" stroke="{stroke}" stroke-width="1.3"/>',
        f'<text x="{box.x:.1f}" y="{title:.1f}" text-anchor="middle" font-size="12" '
        f'font-weight="600" fill="{ink}">{escape(box.title)}</text>',
    ]
    if box.subtitle:
        parts.append(
            f'<text x="{box.x:.1f}" y="{box.top + 36:.1f}" text-anchor="middle" font-size="11" '
            f'fill="#475569">{escape(box.subtitle)}</text>'
        )
    return "".join([*parts, "</g>"])
