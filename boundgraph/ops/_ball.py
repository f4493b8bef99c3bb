"""Interval rules of the first affine op behind a p-ball, by the dual norm of its rows.

Over `‖x − c‖_p <= ε` row i of `L·x + b` reaches exactly `(L·c + b)_i ± ε·‖L_i‖_q`; the box
around the ball gives `ε·‖L_i‖_1` instead. Both hold, so the rule intersects them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from boundgraph.domains.balls import dual
from boundgraph.domains.interval import Interval, meet
from boundgraph.ops._spec import OpSpec, Rule

BALL = "ball."
BALL_ATTRS = ("norm", "rank")


def ball_rule(spec: OpSpec) -> Rule | None:
    """`(box, center, reach, *rest, norm, rank, **attrs) -> Interval`, samples on dimension 0.

    `rank` is that of the result.
    """
    if spec.row_norm is None or spec.interval is None:
        return None
    row_norm, interval = spec.row_norm, spec.interval

    def rule(
        box: Interval,
        center: Tensor,
        reach: Tensor,
        *rest: Tensor,
        norm: float,
        rank: int,
        **attrs: Any,
    ) -> Interval:
        middle = spec.concrete(center, *rest, **attrs)
        spread = reach.reshape((-1, *(1,) * (rank - 1))) * row_norm(*rest, q=dual(norm))
        return meet(interval(box, *rest, **attrs), Interval(middle - spread, middle + spread))

    return rule
