"""Backward walks whose rows depend on a window of an image, not on all of it.

A unit of a convolution depends on a patch of its input, and on a larger patch further
back. Where every op on the way to the regions keeps that structure, a walk carries
coefficients on the patches alone, `[1 or 2, units, channels, height, width]`: a fraction of
the whole values. Each unit belongs to one sample, so samples may have different units.

A coefficient outside the image belongs to nothing: lines and boxes are read there as zeros,
which removes it, and where neither comes in between it is masked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.transposed import transposed
from boundgraph.ir.program import Node, Value
from boundgraph.ops.bounded import BACKWARD
from boundgraph.runtime.interpret import DimSizes
from boundgraph.runtime.slopes import FreeLines, Slopes, free_lines
from boundgraph.runtime.walks import Walk
from boundgraph.runtime.window_plan import Pair, Window, WindowPlan

# A transposed convolution of small windows is a product with a matrix of at most so many
# entries: quicker than a convolution although it multiplies zeros, too.
_MATRIX = 1 << 16


class WindowForm:
    """Coefficients on windows, or one-hot rows that are not made yet.

    Args:
        coeff: `[1 or 2, units, channels, height, width]`; None for one-hot rows at a pixel.
        offset: `[1 or 2, units]`; None means zero.
        signs: of the one-hot rows.
    """

    __slots__ = ("coeff", "offset", "signs")

    def __init__(
        self, coeff: Tensor | None, offset: Tensor | None = None, signs: tuple[float, ...] = (1.0,)
    ) -> None:
        self.coeff, self.offset, self.signs = coeff, offset, signs

    def plus(self, term: Tensor | None) -> Tensor | None:
        if term is None or self.offset is None:
            return self.offset if term is None else term
        return self.offset + term


class WindowWalk:
    """One walk over windows; what does not depend on the units is made once.

    Args:
        plan, walk: which.
        values: by text, what the walk reads.
        sizes: dynamic sizes.
    """

    def __init__(
        self, plan: WindowPlan, walk: Walk, values: Mapping[str, Any], sizes: DimSizes
    ) -> None:
        self.plan, self.walk, self.values, self.sizes = plan, walk, values, sizes
        self._lines: dict[str, FreeLines] = {}
        self._unfolded: dict[tuple[str, Window], Tensor] = {}
        self._matrices: dict[str, Tensor] = {}

    def units(self, sample: Tensor, unit: Tensor) -> WindowUnits:
        """The rows of some units: flat positions in their samples' values."""
        return WindowUnits(self, sample, unit)

    def lines(self, node: Node) -> FreeLines:
        """A relaxed op's lines over its whole operand."""
        key = str(node.result)
        if key not in self._lines:
            self._lines[key] = free_lines(node, self.values, self.sizes)
        return self._lines[key]

    def matrix(self, node: Node, before: Window) -> Tensor | None:
        """The transposed convolution of a window as a matrix, where that is cheap."""
        key = str(node.result)
        if key not in self._matrices:
            weight: Tensor = self.values[str(node.inputs[1])]
            after = self.plan.windows[key]
            if before.elements * after.elements > _MATRIX:
                return None
            eye = torch.eye(before.elements, dtype=weight.dtype, device=weight.device)
            rows = eye.reshape(-1, before.channels, *before.size)
            self._matrices[key] = _transposed(rows, weight, node, after.size).flatten(1)
        return self._matrices[key]

    def unfolded(self, name: str, value: Tensor, window: Window) -> Tensor:
        """All windows of a value, `[batch · positions, channels · height · width]`."""
        key = (name, window)
        if key not in self._unfolded:
            padded = _padded(value, window, self.plan.grid)
            patches = F.unfold(padded, window.size, stride=window.step)
            self._unfolded[key] = patches.transpose(1, 2).flatten(0, 1).contiguous()
        return self._unfolded[key]


def _transposed(coeff: Tensor, weight: Tensor, node: Node, size: Pair) -> Tensor:
    attrs: Any = node.attrs
    stride, dilation = attrs["stride"], attrs["dilation"]
    return transposed(coeff, weight, size, stride=stride, padding=(0, 0), dilation=dilation)


def _padded(value: Tensor, window: Window, grid: Pair) -> Tensor:
    """The part of a value that the windows of a grid cover, zeros outside the image."""
    pads: list[int] = []
    for dim in (1, 0):
        stop = window.start[dim] + window.step[dim] * (grid[dim] - 1) + window.size[dim]
        # Negative padding cuts.
        pads += [-window.start[dim], stop - window.image[dim]]
    return F.pad(value, pads)


class WindowUnits:
    """Some units on their way back, any number of times with different free slopes."""

    def __init__(self, walk: WindowWalk, sample: Tensor, unit: Tensor) -> None:
        self.all, self.plan, self.walk = walk, walk.plan, walk.walk
        self.sample = sample
        height, width = walk.plan.grid
        self.channel = unit // (height * width)
        self.row, self.column = unit // width % height, unit % width
        self._gathered: dict[tuple[str, Window], Tensor] = {}

    def run(self, slopes: Slopes | None = None) -> Tensor:
        """Least values `[1 or 2, units]`; `slopes` one for each coefficient."""
        forms = {str(self.walk.seed.result): WindowForm(None)}
        last = {str(v): n for n, node in enumerate(self.walk.nodes) for v in node.inputs}
        for position, node in enumerate(self.walk.nodes):
            forms[str(node.result)] = self._step(node, forms, slopes)
            for value in node.inputs:
                if last[str(value)] == position and value not in self.walk.assemble.inputs:
                    forms.pop(str(value), None)
        total: Tensor | None = None
        ends = iter(self.walk.assemble.inputs)
        for value, box in zip(ends, ends, strict=True):
            part = self._least(value, forms[str(value)], self.all.values[str(box)], str(box))
            total = part if total is None else total + part
        assert total is not None
        return total

    def _step(
        self, node: Node, forms: Mapping[str, WindowForm], slopes: Slopes | None
    ) -> WindowForm:
        form, value = forms[str(node.inputs[0])], node.inputs[0]
        if node.op == f"{BACKWARD}sign":
            return _signed(form)
        if node.op == f"{BACKWARD}merge":
            return self._merged(node, forms)
        if node.op == f"{BACKWARD}add":
            offset = form.offset if node.attrs["carry"] else None
            return WindowForm(form.coeff, offset, form.signs)
        if node.op == f"{BACKWARD}conv2d":
            return self._through_convolution(node, form)
        return self._through_lines(node, self._dense(form, value), value, slopes)

    def _dense(self, form: WindowForm, value: Value) -> WindowForm:
        """With one-hot rows made."""
        if form.coeff is not None:
            return form
        window = self.plan.windows[str(value)]
        like: Tensor = self.all.values[str(self.walk.seed.inputs[0])].any_part
        hot = F.one_hot(self.channel, window.channels).to(like.dtype)
        hot = hot.reshape(1, -1, window.channels, 1, 1)
        return WindowForm(torch.cat([hot * sign for sign in form.signs]), form.offset, form.signs)

    def _through_lines(
        self, node: Node, form: WindowForm, value: Value, slopes: Slopes | None
    ) -> WindowForm:
        window, key = self.plan.windows[str(value)], str(node.result)
        lines, free = self.all.lines(node)
        assert form.coeff is not None
        lower = self._of(lines.lower_slope, f"{key}.lower", window)
        upper = self._of(lines.upper_slope, f"{key}.upper", window)
        if slopes is not None and free is not None:
            where = self._of(free, f"{key}.free", window)
            lower = slopes.lower(node, where, lower, form.coeff.shape)
        positive = torch.relu(form.coeff)
        negative = form.coeff - positive
        coeff = torch.addcmul(positive * lower, negative, upper)
        term = _dot(negative, self._of(lines.upper_offset, f"{key}.above", window))
        if not lines.from_origin:
            term = term + _dot(positive, self._of(lines.lower_offset, f"{key}.below", window))
        return WindowForm(coeff, form.plus(term))

    def _through_convolution(self, node: Node, form: WindowForm) -> WindowForm:
        weight, *bias = (self.all.values[str(value)] for value in node.inputs[1:])
        carried = bias[0] if bias and node.attrs["carry"] else None
        kept = form.offset if node.attrs["carry"] else None
        if form.coeff is None:
            channels = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
            plain = tuple(node.attrs["dilation"]) == (1, 1)  # type: ignore[arg-type]
            kernels = (
                weight
                if plain
                else _transposed(
                    channels[:, :, None, None],
                    weight,
                    node,
                    self.plan.windows[str(node.result)].size,
                )
            )
            rows = kernels[self.channel]
            coeff = torch.stack([rows * sign if sign != 1.0 else rows for sign in form.signs])
            term = None
            if carried is not None:
                picked = carried[self.channel]
                term = torch.stack([picked * sign for sign in form.signs])
            return WindowForm(coeff, WindowForm(None, kept).plus(term))
        before = self.plan.windows[str(node.inputs[0])]
        coeff = form.coeff
        if not before.clean:
            coeff = coeff * self._inside(before, coeff)
        term = None if carried is None else torch.matmul(coeff.sum((3, 4)), carried)
        matrix = self.all.matrix(node, before)
        size = self.plan.windows[str(node.result)]
        if matrix is not None:
            moved = torch.matmul(coeff.flatten(2), matrix)
            moved = moved.unflatten(2, (size.channels, *size.size))
        else:
            moved = _transposed(coeff.flatten(0, 1), weight, node, size.size)
            moved = moved.unflatten(0, coeff.shape[:2])
        return WindowForm(moved, WindowForm(None, kept).plus(term))

    def _merged(self, node: Node, forms: Mapping[str, WindowForm]) -> WindowForm:
        target = self.plan.windows[str(node.result)]
        total, found = None, WindowForm(None)
        for value in node.inputs:
            form, own = self._dense(forms[str(value)], value), self.plan.windows[str(value)]
            assert form.coeff is not None
            pads: list[int] = []
            for dim in (1, 0):
                front = own.start[dim] - target.start[dim]
                pads += [front, target.size[dim] - own.size[dim] - front]
            coeff = F.pad(form.coeff, pads) if any(pads) else form.coeff
            total = coeff if total is None else total + coeff
            found = WindowForm(None, found.plus(form.offset))
        return WindowForm(total, found.offset)

    def _least(self, value: Value, form: WindowForm, box: Interval, name: str) -> Tensor:
        """Least values of a form over the windows of its box."""
        form, window = self._dense(form, value), self.plan.windows[str(value)]
        assert form.coeff is not None
        center = self._of(box.center, f"{name}.center", window)
        radius = self._of(box.radius, f"{name}.radius", window)
        found = form.plus(_dot(form.coeff, center) - _dot(form.coeff.abs(), radius))
        assert found is not None
        return found

    def _inside(self, window: Window, like: Tensor) -> Tensor:
        ones = torch.ones((1, 1, *window.image), dtype=like.dtype, device=like.device)
        flat = Window(1, window.image, window.start, window.step, window.size, True)
        patches = self.all.unfolded("inside", ones, flat)
        found = patches[self.row * self.plan.grid[1] + self.column]
        return found.unflatten(1, (1, *window.size))

    def _of(self, value: Tensor, name: str, window: Window) -> Tensor:
        """The units' windows of a value `[batch, channels, height, width]`, zero outside."""
        key = (name, window)
        if key in self._gathered:
            return self._gathered[key]
        height, width = self.plan.grid
        if len(value) * height * width <= 4 * len(self.sample):
            patches = self.all.unfolded(name, value, window)
            place = (self.sample * height + self.row) * width + self.column
            found = patches.index_select(0, place).unflatten(1, (window.channels, *window.size))
        else:
            padded = _padded(value, window, self.plan.grid)
            views = padded.unfold(2, window.size[0], window.step[0])
            views = views.unfold(3, window.size[1], window.step[1])
            found = views[self.sample, :, self.row, self.column]
        self._gathered[key] = found
        return found


def _signed(form: WindowForm) -> WindowForm:
    offset = None if form.offset is None else torch.cat([form.offset, -form.offset])
    if form.coeff is None:
        return WindowForm(None, offset, (*form.signs, *(-sign for sign in form.signs)))
    return WindowForm(torch.cat([form.coeff, -form.coeff]), offset)


def _dot(coeff: Tensor, value: Tensor) -> Tensor:
    """Coefficients `[signs, units, …]` times each unit's own values, summed: `[signs, units]`."""
    columns = value.flatten(1).unsqueeze(2)
    return torch.matmul(coeff.flatten(2).transpose(0, 1), columns).squeeze(2).transpose(0, 1)
