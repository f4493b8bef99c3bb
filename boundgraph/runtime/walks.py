"""The backward walks of a bounded program, each of which acts on every row by itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from boundgraph.ir.program import Node, Program, Value
from boundgraph.ir.types import Dim, FormType

SEED, ASSEMBLE, TIGHTEN = "backward.seed", "backward.assemble", "interval.tighten"


@dataclass(frozen=True)
class Walk:
    """From one-hot rows at a value back to the regions.

    Args:
        seed: makes the rows.
        nodes: what carries forms, in order; none of it mixes rows.
        assemble: makes the interval of the value.
        tighten: the only reader of that interval, which wants it at some elements alone;
            None where every row is wanted.
    """

    seed: Node
    nodes: tuple[Node, ...]
    assemble: Node
    tighten: Node | None = None

    @property
    def result(self) -> Value:
        return (self.tighten or self.assemble).result

    @property
    def inputs(self) -> tuple[Value, ...]:
        """What the walk reads besides its own forms."""
        own = {str(node.result) for node in (self.seed, *self.nodes, self.assemble)}
        readers = (
            self.seed,
            *self.nodes,
            self.assemble,
            *((self.tighten,) if self.tighten else ()),
        )
        return tuple(v for node in readers for v in node.inputs if str(v) not in own)

    @property
    def rows(self) -> int:
        """Elements of a sample of the value."""
        found = self.seed.result.type.shape[0]
        assert isinstance(found, int)
        return found

    @property
    def signed(self) -> bool:
        return bool(self.assemble.attrs["signed"])

    @property
    def batch_dim(self) -> int | None:
        found = self.assemble.attrs["batch_dim"]
        assert found is None or isinstance(found, int)
        return found


Step = Node | Walk


def split(program: Program) -> tuple[Step, ...]:
    """A program as walks and the nodes between them, in an order that runs.

    A form that two walks read belongs to both. What does not start from one seed, or is
    read from outside, stays single nodes.
    """
    made = {str(node.result): node for node in program.nodes}
    walks: dict[str, Walk] = {}
    for node in program.nodes:
        if node.op == ASSEMBLE and (walk := _walk(node, made)) is not None:
            walks[str(node.result)] = walk
    alone = _single_nodes(program, made, walks)
    reads = Counter(str(value) for node in program.nodes for value in set(node.inputs))
    reads.update(map(str, program.outputs))
    steps: list[Step] = []
    for node in program.nodes:
        key = str(node.result)
        if isinstance(node.result.type, FormType) and key not in alone:
            continue
        if node.op == TIGHTEN and reads[str(node.inputs[1])] == 1:
            walk = walks.get(str(node.inputs[1]))
            if walk is not None:
                steps.remove(walk)
                steps.append(replace(walk, tighten=node))
                continue
        steps.append(walks.get(key, node))
    return tuple(steps)


def _walk(assemble: Node, made: dict[str, Node]) -> Walk | None:
    found: set[str] = set()
    stack = [v for v in assemble.inputs if isinstance(v.type, FormType)]
    while stack:
        key = str(stack.pop())
        if key not in made:
            return None
        if key not in found:
            found.add(key)
            stack.extend(v for v in made[key].inputs if isinstance(v.type, FormType))
    ordered = [node for key, node in made.items() if key in found]
    seeds = [node for node in ordered if node.op == SEED]
    if len(seeds) != 1 or len(seeds[0].inputs) != 1:
        return None
    return Walk(seeds[0], tuple(node for node in ordered if node.op != SEED), assemble)


def _single_nodes(program: Program, made: dict[str, Node], walks: dict[str, Walk]) -> set[str]:
    """Forms that something outside the walks reads, and what they are made of."""
    inside = {str(n.result) for w in walks.values() for n in (w.seed, *w.nodes, w.assemble)}
    stack = [str(value) for value in program.outputs if isinstance(value.type, FormType)]
    for node in program.nodes:
        if str(node.result) not in inside:
            stack += [str(v) for v in node.inputs if isinstance(v.type, FormType)]
    alone: set[str] = set()
    while stack:
        key = stack.pop()
        if key in made and key not in alone:
            alone.add(key)
            stack += [str(v) for v in made[key].inputs if isinstance(v.type, FormType)]
    # Forms outside every walk stand alone, too.
    forms = {k for k, node in made.items() if isinstance(node.result.type, FormType)}
    return alone | (forms - inside)


def is_shared(value: Value, *, dynamic: bool) -> bool:
    """Whether a form's coefficients stand for all samples (its batch dimension is 1)."""
    return dynamic and not any(isinstance(entry, Dim) for entry in value.type.shape)
