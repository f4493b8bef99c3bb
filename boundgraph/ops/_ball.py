"""Interval rules of the first affine op behind a p-ball, by the dual norm of its rows.

Over `‖x − c‖_p <= ε` row i of `L·x + b` reaches exactly `(L·c + b)_i ± ε·‖L_i‖_q`; the box
around the ball gives `ε·‖L_i‖_1` instead. Both hold, so the rule intersects them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from boundgraph.domains.balls import dual
from boundgraph.domains.interval import Interval, meet
from boundgraph.domains.rounding import PRECISIONS, Outward, grown
from boundgraph.ops._sound import Centre, interval_rule
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


def sound_ball_rule(spec: OpSpec) -> Rule | None:
    """The same with its rounding accounted for; also takes what `interval.sound.OP` takes.

    The norm of a row of n numbers is off by less than γ(n + 16) of itself.
    """
    of_box = interval_rule(spec)
    if spec.row_norm is None or not spec.centred or of_box is None:
        return None
    row_norm = spec.row_norm

    def rule(
        box: Interval,
        center: Tensor,
        reach: Tensor,
        *rest: Tensor,
        norm: float,
        rank: int,
        terms: int,
        precision: str,
        **attrs: Any,
    ) -> Interval:
        p = PRECISIONS[precision]
        how, _ = Centre.of(terms, attrs)
        point = Outward.ball(center, 0.0 * center.abs(), p)
        around = of_box(point, *rest, terms=terms, precision=precision, **attrs)
        spread = reach.reshape((-1, *(1,) * (rank - 1))) * row_norm(*rest, q=dual(norm))
        spread = spread * (1.0 + 2.0 * p.gamma(how.full + 16)) + 16.0 * (how.full + 4) * p.tiny
        inside = of_box(box, *rest, terms=terms, precision=precision, **attrs)
        return meet(inside, Outward.ball(around.center, grown(around.radius + spread, p), p))

    return rule
