"""Rules by the op names of bounded programs: `relu`, `interval.relu`, `symbolic.relu`.

Besides the rules of the registry there are a few ops that exist only on bounds.
"""

from __future__ import annotations

from boundgraph.domains.interval import Interval, meet
from boundgraph.domains.symbolic import Symbolic, diagonal
from boundgraph.errors import InternalError
from boundgraph.ops import _spec
from boundgraph.ops._spec import Rule

INTERVAL, SYMBOLIC = "interval.", "symbolic."


def _symbolic_input(
    x: Interval, *, block: str, batch_dim: int | None, features: tuple[int, ...]
) -> Symbolic:
    """An interval as a zonotope with one symbol per element."""
    return Symbolic(x.center, {block: diagonal(x.radius, batch_dim, features)})


BOUND_ONLY: dict[str, Rule] = {
    "interval.meet": meet,
    "symbolic.concretize": lambda x: x.concretize(),
    "symbolic.fresh": _symbolic_input,
}


def rule(op: str) -> Rule:
    """The function that a program op runs.

    Raises:
        InternalError: no such op, or the op lacks that rule.
    """
    if op in BOUND_ONLY:
        return BOUND_ONLY[op]
    name, attribute = op, "concrete"
    for prefix, field in ((INTERVAL, "interval"), (SYMBOLIC, "symbolic")):
        if op.startswith(prefix):
            name, attribute = op.removeprefix(prefix), field
    spec = _spec.get(name)
    found: Rule | None = getattr(spec, attribute) if spec is not None else None
    if found is None:
        raise InternalError(f"no rule for op {op!r}")
    return found


def known(op: str) -> bool:
    """Whether a program may contain this op."""
    try:
        rule(op)
    except InternalError:
        return False
    return True

