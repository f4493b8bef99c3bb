"""Which backward walks stay within windows of an image, and where the windows lie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from boundgraph.ir.program import Node, Value
from boundgraph.ir.types import Dim
from boundgraph.ops import get
from boundgraph.ops.bounded import BACKWARD
from boundgraph.runtime.walks import Walk

# Windows pay where they hold less than this share of the whole coefficients.
_WORTH = 0.5

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Where the coefficients of a unit at `position` lie: `start + step·position`, and how many.

    Args:
        channels: of the value.
        image: height and width of the value.
        start, step, size: by dimension, height first.
        clean: no coefficient outside the image differs from 0.
    """

    channels: int
    image: Pair
    start: Pair
    step: Pair
    size: Pair
    clean: bool

    @property
    def elements(self) -> int:
        return self.channels * math.prod(self.size)


@dataclass(frozen=True)
class WindowPlan:
    """The windows of a walk's forms, by the text of their values.

    Args:
        grid: height and width of the value whose units are walked.
        windows: of each form.
    """

    grid: Pair
    windows: Mapping[str, Window]

    @property
    def elements(self) -> int:
        """Most coefficients of one row that live at the same time, roughly."""
        return 3 * max(window.elements for window in self.windows.values())


def plan_windows(walk: Walk) -> WindowPlan | None:
    """The windows of a walk; None where an op needs whole values, or they would not pay."""
    seed = _image(walk.seed.result)
    if seed is None or walk.batch_dim != 0 or any(walk.assemble.attrs.get("norms", ())):  # type: ignore[call-overload]
        return None
    channels, *grid = seed
    windows = {
        str(walk.seed.result): Window(channels, (grid[0], grid[1]), (0, 0), (1, 1), (1, 1), True)
    }
    whole = 0
    for node in walk.nodes:
        made = _window(node, windows)
        if made is None:
            return None
        windows[str(node.result)] = made
        whole += made.channels * math.prod(made.image)
    ends = [v for v in walk.assemble.inputs if str(v) not in windows]
    if any(_image_of(value) is None for value in ends):
        return None
    part = sum(windows[str(node.result)].elements for node in walk.nodes)
    if part > _WORTH * whole:
        return None
    return WindowPlan((grid[0], grid[1]), windows)


def _image(form: Value) -> tuple[int, ...] | None:
    """Channels, height and width of a form `[rows, batch, channels, height, width]`."""
    shape = form.type.shape
    found = tuple(entry for entry in shape[2:] if isinstance(entry, int))
    return found if len(shape) == 5 and len(found) == 3 else None


def _image_of(value: Value) -> tuple[int, ...] | None:
    """The same of a value `[batch, channels, height, width]`."""
    found = tuple(entry for entry in value.type.shape[1:] if isinstance(entry, int))
    return found if len(value.type.shape) == 4 and len(found) == 3 else None


def _window(node: Node, windows: Mapping[str, Window]) -> Window | None:
    """The window behind a node; None where it needs whole values."""
    image, before = _image(node.result), windows.get(str(node.inputs[0]))
    if image is None or before is None:
        return None
    if node.op == f"{BACKWARD}sign":
        return before
    if node.op == f"{BACKWARD}merge":
        return _union([windows[str(value)] for value in node.inputs])
    if node.attrs.get("sample_dims") != (2, 3, 4):
        return None
    if node.op == f"{BACKWARD}conv2d":
        return _behind_convolution(node, before, image)
    if node.op == f"{BACKWARD}add":
        shapes: Any = node.attrs["shapes"]
        same = all(tuple(shape[1:]) == image for shape in shapes)
        return before if len(node.inputs) == 1 and same else None
    return _before_lines(node, before)


def _before_lines(node: Node, before: Window) -> Window | None:
    spec = get(node.op.removeprefix(BACKWARD))
    if spec is None or spec.lines is None or _image_of(node.inputs[1]) is None:
        return None
    if len(node.inputs) > (3 if spec.learnable else 2) or node.attrs.get("parallel"):
        return None
    return Window(before.channels, before.image, before.start, before.step, before.size, True)


def _behind_convolution(node: Node, before: Window, image: tuple[int, ...]) -> Window | None:
    attrs: Any = node.attrs
    fixed = all(not isinstance(e, Dim) for value in node.inputs[1:] for e in value.type.shape)
    if attrs["groups"] != 1 or not fixed:
        return None
    kernel: Any = node.inputs[1].type.shape[2:]
    start, step, size = [], [], []
    for dim in range(2):
        stride, spread = attrs["stride"][dim], attrs["dilation"][dim]
        start.append(before.start[dim] * stride - attrs["padding"][dim])
        step.append(before.step[dim] * stride)
        size.append((before.size[dim] - 1) * stride + spread * (kernel[dim] - 1) + 1)
    return Window(
        image[0],
        (image[1], image[2]),
        (start[0], start[1]),
        (step[0], step[1]),
        (size[0], size[1]),
        False,
    )


def _union(parts: list[Window]) -> Window | None:
    first = parts[0]
    if any(
        (p.step, p.channels, p.image) != (first.step, first.channels, first.image) for p in parts
    ):
        return None
    start = [min(p.start[dim] for p in parts) for dim in range(2)]
    stop = [max(p.start[dim] + p.size[dim] for p in parts) for dim in range(2)]
    size = (stop[0] - start[0], stop[1] - start[1])
    clean = all(p.clean for p in parts)
    return Window(first.channels, first.image, (start[0], start[1]), first.step, size, clean)
