"""Lines of relaxed ops, made once in a run for all the walks and portions that come through.

Lines follow from the interval of an operand alone, and a smooth op takes hundreds of small steps to
find them. Under `crown` every later walk comes through the op again: of an LSTM's time most went
there. `ops/_sharing.py` does the like while a program is emitted, where keeping a result costs
nothing; here it is memory, so that only lines that take long and come again are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from boundgraph.domains.linear_form import LinearForm, Lines
from boundgraph.ir.program import Node
from boundgraph.ops import get
from boundgraph.ops.bounded import BACKWARD

# What a walk's rule takes beside the attributes of the op itself.
OF_WALKS = frozenset(("shapes", "target", "sample_dims", "operand", "carry"))
Key = tuple[Any, ...]


class SharedLines:
    """Lines by what they are made from, of ops that several walks of a program come through.

    Args:
        nodes: of the program.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        found = {str(node.result): _key(node) for node in nodes}
        self._keys = {name: key for name, key in found.items() if key is not None}
        counts = Counter(self._keys.values())
        self._shared = {key for key, count in counts.items() if count > 1}
        self._made: dict[Key, Lines] = {}
        self._of_walk: dict[Key, Lines] | None = None

    def apart(self) -> SharedLines:
        """The same without any lines yet, for values that are a walk's own."""
        lines = copy(self)
        lines._made = {}
        return lines

    def for_portions(self) -> SharedLines:
        """Keeps the lines of other ops, too, for a walk that comes through in portions."""
        lines = copy(self)
        lines._of_walk = {}
        return lines

    def through(
        self, node: Node, operands: Sequence[Any], attrs: Mapping[str, Any]
    ) -> LinearForm | None:
        """The form on the operand of a relaxed op; None where its rule has to say it.

        Args:
            node: of the program.
            operands: the form on its result, the operand's interval and what else it reads.
            attrs: of the node, with sizes resolved.
        """
        key = self._keys.get(str(node.result))
        if key is None:
            return None
        made = self._made if key in self._shared else self._of_walk
        if made is None:
            return None
        if key not in made:
            spec = get(node.op.removeprefix(BACKWARD))
            assert spec is not None and spec.lines is not None
            own = {name: value for name, value in attrs.items() if name not in OF_WALKS}
            made[key] = spec.lines(*operands[1:], **own)
        form: LinearForm = operands[0]
        return form.through(made[key], attrs["sample_dims"])


def _key(node: Node) -> Key | None:
    """What lines are made from; None for a node whose lines are not worth keeping."""
    if not node.op.startswith(BACKWARD) or "parallel" in node.attrs:
        return None
    spec = get(node.op.removeprefix(BACKWARD))
    # Lines of ops that are linear in pieces take a few steps.
    if spec is None or spec.lines is None or spec.kinks is not None or spec.user:
        return None
    own = tuple((k, repr(v)) for k, v in node.attrs.items() if k not in OF_WALKS)
    return (node.op, *map(str, node.inputs[1:]), own)
