"""The forward and the backward schedule of `symbolic` side by side."""

from __future__ import annotations

from torch import Tensor, nn

import boundgraph as bg
from boundgraph.domains import Interval
from boundgraph.testing import excess, model_allowance, symbols_of


def both(
    model: nn.Module, *regions: bg.Region | Tensor, **options: object
) -> tuple[Interval, Interval, Tensor]:
    """Bounds of the forward and of the backward schedule, and what rounding may do to them."""
    found = []
    for schedule in ("forward", "backward"):
        program = bg.compile(model, *regions, method="symbolic", schedule=schedule, **options)
        assert (schedule == "forward") == ("symbolic." in str(program.ir))
        bounds = program(*regions)
        found.append(Interval(bounds.lower.detach(), bounds.upper.detach()))
    program = bg.compile(model, *regions, method="symbolic", schedule="forward")
    plain = bg.compile(model, *regions)(*regions)
    (moved,) = model_allowance(model, *regions)
    width = (plain.upper - plain.lower).detach()
    ratio = ((found[0].upper - found[0].lower) / width).nan_to_num(1.0, 1e6).clamp(1.0, 1e6)
    return found[0], found[1], (4.0 + 2.0 * symbols_of(program, *regions)) * moved * ratio


def assert_equal(forward: Interval, backward: Interval, allowed: Tensor) -> None:
    assert not (excess(backward, forward, allowed) > 0).any()
    assert not (excess(forward, backward, allowed) > 0).any()
