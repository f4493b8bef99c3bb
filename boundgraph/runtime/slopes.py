"""Free slopes of the rows of a walk, and the ascent that chooses them.

Every row of a walk may have lower slopes of its own: any slope in [0, 1] is sound, so each
evaluation bounds each row, and the best of each row is kept. Rows do not share slopes, so
each climbs by itself; a step moves every slope by a fixed amount in the direction of its
gradient, which needs no state beside the slopes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import Lines
from boundgraph.errors import InternalError
from boundgraph.ir.program import Node
from boundgraph.ops import get
from boundgraph.ops.bounded import BACKWARD
from boundgraph.runtime.interpret import DimSizes
from boundgraph.runtime.shared_lines import OF_WALKS

# The last of many steps over the first, and how much a step is at least of the one before.
_LAST_STEP, _SHRINK = 0.05, 0.6


class FreeLines(NamedTuple):
    """Lines of a relaxed op, and where the slope of the lower one is free (1, else 0)."""

    lines: Lines
    free: Tensor | None


def free_lines(node: Node, values: Mapping[str, Any], sizes: DimSizes) -> FreeLines:
    """The lines that a backward node of an element-wise op applies, over its whole operand.

    Raises:
        InternalError: the op's lines depend on the free slope in another way than declared.
    """
    spec = get(node.op.removeprefix(BACKWARD))
    assert spec is not None and spec.lines is not None
    attrs = {k: sizes.resolve(v) for k, v in node.attrs.items() if k not in OF_WALKS}
    pre: Interval = values[str(node.inputs[1])]
    lines: Lines = spec.lines(pre, **attrs)
    if len(node.inputs) < 3:
        return FreeLines(lines, None)
    steep: Lines = spec.lines(pre, torch.ones_like(pre.lower), **attrs)
    flat: Lines = spec.lines(pre, torch.zeros_like(pre.lower), **attrs)
    free = steep.lower_slope - flat.lower_slope
    if not (lines.from_origin and bool(((free == 0) | (free == 1)).all())):
        raise InternalError(f"{node.op}: a free slope must be that of a line through the origin")
    return FreeLines(lines, free)


@dataclass
class Slopes:
    """The free slopes of one portion of rows, by the name of the input they stand for.

    Args:
        names: inputs that stand for free slopes.
        given: slopes, one for each coefficient; made where missing, from the op's own choice.
    """

    names: frozenset[str]
    given: dict[str, Tensor] = field(default_factory=dict)

    def takes(self, node: Node) -> bool:
        return len(node.inputs) > 2 and node.inputs[-1].name in self.names

    def lower(self, node: Node, free: Tensor, own: Tensor, shape: torch.Size) -> Tensor:
        """Lower slopes for coefficients of a shape: the free ones, or the op's own choice."""
        name = node.inputs[-1].name
        if name not in self.given:
            self.given[name] = own.expand(torch.broadcast_shapes(own.shape, shape))
            return own
        return torch.where(free > 0, self.given[name], own)


def ascend(
    evaluate: Callable[[Slopes], Tensor],
    names: frozenset[str],
    steps: int,
    size: float,
    go_on: Callable[[], bool] = lambda: True,
) -> Tensor:
    """The best least value of each row over some steps of its slopes.

    Args:
        evaluate: least values `[rows, ...]` for slopes.
        names: see `Slopes`.
        steps: gradient steps; each needs an evaluation, and there is one more.
        size: of the first step; later ones shrink geometrically.
        go_on: asked before each step; what is best so far holds whenever it stops.
    """
    slopes = Slopes(names)
    with torch.no_grad():
        best = evaluate(slopes)
    shrink = max(_SHRINK, _LAST_STEP ** (1 / max(steps - 1, 1)))
    for _ in range(steps):
        slopes.given = {k: v.detach().requires_grad_() for k, v in slopes.given.items()}
        if not slopes.given or not go_on():
            return best
        with torch.enable_grad():
            total = evaluate(slopes)
            grads = torch.autograd.grad(total.sum(), list(slopes.given.values()), allow_unused=True)
        with torch.no_grad():
            # NaN stays NaN here, and proves nothing.
            best = torch.maximum(best, total.detach())
            for (name, old), grad in zip(tuple(slopes.given.items()), grads, strict=True):
                if grad is not None:
                    way = torch.nan_to_num(grad.sign_(), 0.0)
                    slopes.given[name] = old.detach().add(way, alpha=size).clamp_(0.0, 1.0)
        size *= shrink
    with torch.no_grad():
        return torch.maximum(best, evaluate(slopes)) if steps else best
