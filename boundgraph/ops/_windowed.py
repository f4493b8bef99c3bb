"""Forward symbolic rules on windows, and where the windows lie.

An op that is not here needs whole generators (`symbolic.dense`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.domains.symbolic import Symbolic
from boundgraph.domains.windowed import Window, Windowed
from boundgraph.ir.program import Node
from boundgraph.ops._spec import Kind, OpSpec, over_symbols

WINDOWS = "windows."
# Attributes that rules on windows take besides those of the op.
WINDOW_ATTRS = ("windows", "kernel", "features")

# A window pays where it holds less than this share of the symbols.
_WORTH = 0.5

Block = Window | None


@dataclass(frozen=True)
class Layout:
    """How the generators of a value are kept.

    Args:
        features: channels, height and width of the value, before it was flattened.
        blocks: the window of each block, None where its generators are whole.
        flat: the value is `[batch, elements]`.
    """

    features: tuple[int, int, int]
    blocks: Mapping[str, Block]
    flat: bool = False

    def temporaries(self, symbols: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
        """The same while a matrix is applied to the flattened value."""
        places = self.features[1] * self.features[2]
        return tuple(
            (name, symbols[name] if window is None or window.own else places * window.entries)
            for name, window in self.blocks.items()
        )

    def entries(self, symbols: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
        """Numbers that an element of the value has, block by block."""
        return tuple(
            (name, symbols[name] if window is None else window.entries)
            for name, window in self.blocks.items()
        )


def own_layout(name: str, features: tuple[int, ...] | None, batch: int | None) -> Layout | None:
    """Of a new block; None for what is not an image."""
    if features is None or batch != 0 or len(features) != 3 or not all(features):
        return None
    channels, height, width = features
    window = Window(channels, (height, width), own=True)
    return Layout((channels, height, width), {name: window})


def layout_after(node: Node, spec: OpSpec, operands: list[Layout | None]) -> Layout | None:
    """How a node's result is kept; None where the op needs whole generators.

    Args:
        operands: of each operand of the node, None for those without windows.
    """
    first = operands[0] if operands else None
    shape = node.result.type.shape
    fixed = all(isinstance(size, int) for size in shape[1:])
    if first is None or not fixed:
        return None
    if node.op == "reshape" and len(shape) == 2:
        whole = shape[1] == math.prod(first.features) and not first.flat
        return Layout(first.features, first.blocks, True) if whole else None
    if first.flat:
        return None
    if node.op == "conv2d":
        return _behind_convolution(node, first)
    if node.op in ("add", "sub"):
        return _sum(node, operands)
    relaxed = spec.kind is Kind.ELEMENTWISE and spec.relaxed and spec.symbolic is not None
    return first if relaxed and len(node.inputs) == 1 else None


def reads_flat(node: Node, layout: Layout) -> bool:
    """Whether a product with a matrix ends the windows of its operand."""
    return layout.flat and node.op == "linear" and len(node.inputs) >= 2


def _behind_convolution(node: Node, first: Layout) -> Layout | None:
    attrs: Any = node.attrs
    shape: Any = node.result.type.shape
    channels, height, width = shape[1:]
    kernel: Any = node.inputs[1].type.shape[2:]
    if not all(isinstance(size, int) for size in kernel):
        return None
    blocks: dict[str, Block] = {}
    for name, window in first.blocks.items():
        found = None
        if window is not None:
            found = window.behind(kernel, attrs["stride"], attrs["padding"], attrs["dilation"])
            if found.entries > _WORTH * found.symbols or not found.meets((height, width)):
                return None
        blocks[name] = found
    return Layout((channels, height, width), blocks)


def _sum(node: Node, operands: list[Layout | None]) -> Layout | None:
    """Of two images; a constant operand of the same shape leaves the generators alone."""
    first, second = operands
    shapes = [value.type.shape for value in node.inputs]
    if first is None or shapes[0] != shapes[1] or second is None or second.flat:
        return None
    blocks = dict(first.blocks)
    for name, window in second.blocks.items():
        if name not in blocks:
            blocks[name] = window
            continue
        mine = blocks[name]
        both = None if mine is None or window is None else mine.union(window)
        if both is None and not (mine is None and window is None):
            return None
        blocks[name] = both
    return Layout(first.features, blocks)


def _conv2d(
    x: Symbolic,
    weight: Tensor,
    *bias: Any,
    windows: Any,
    kernel: Any,
    features: Any,
    groups: int,
    **attrs: Any,
) -> Symbolic:
    convolve: Any = F.conv2d
    center = convolve(x.center, weight, *bias, groups=groups, **attrs)
    whole = _one_group(weight, groups)

    def block(value: Tensor | Windowed) -> Tensor | Windowed:
        if isinstance(value, Windowed):
            return value.convolved(whole, features, kernel=kernel, **attrs)
        return over_symbols(lambda g: convolve(g, weight, groups=groups, **attrs), value)

    return Symbolic(center, {name: block(value) for name, value in x.blocks.items()})


def _one_group(weight: Tensor, groups: int) -> Tensor:
    """The kernels over all channels, zeros outside their group."""
    if groups == 1:
        return weight
    eye = torch.eye(groups, dtype=weight.dtype, device=weight.device)
    parts = weight.unflatten(0, (groups, -1)).unsqueeze(2)
    return (parts * eye.reshape(groups, 1, groups, 1, 1, 1)).flatten(0, 1).flatten(1, 2)


def _linear(x: Symbolic, weight: Tensor, *bias: Tensor, features: Any, **_: Any) -> Symbolic:
    def block(value: Tensor | Windowed) -> Tensor:
        if isinstance(value, Windowed):
            return value.times(weight, features[0])
        return F.linear(value, weight)

    center = F.linear(x.center, weight, *bias)
    return Symbolic(center, {name: block(value) for name, value in x.blocks.items()})


def _reshape(x: Symbolic, *, shape: Any, windows: Any, features: Any) -> Symbolic:
    def block(value: Tensor | Windowed) -> Tensor | Windowed:
        return value.flattened() if isinstance(value, Windowed) else value.flatten(2)

    return Symbolic(x.center.reshape(shape), {k: block(v) for k, v in x.blocks.items()})


def dense(x: Symbolic) -> Symbolic:
    """The same value with whole generators."""
    blocks = {k: v.dense() if isinstance(v, Windowed) else v for k, v in x.blocks.items()}
    return Symbolic(x.center, blocks)


RULES: dict[str, Any] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "reshape": _reshape,
    "add": lambda a, b, **_: a.combine(b, 1.0),
    "sub": lambda a, b, **_: a.combine(b, -1.0),
}
