"""Change a program by local rules, and the two clean-ups that every pipeline needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from boundgraph.errors import InternalError
from boundgraph.ir.printer import print_program
from boundgraph.ir.program import Attrs, Node, Program, Value
from boundgraph.ir.types import TensorType
from boundgraph.source import SourceSpan

ANY_OP = "*"


@dataclass(frozen=True)
class RewriteRule:
    """What to do with the nodes of one op.

    Args:
        op: the op whose nodes the rule looks at, or `"*"` for every node.
        apply: returns None to leave the node, or the value that takes its result's
            place: an existing one, or one made with the context's `add`. It must have
            the type of the result that it replaces.
    """

    op: str
    apply: Callable[[Node, RewriteContext], Value | None]

    def matches(self, node: Node) -> bool:
        return self.op in (ANY_OP, node.op)


class RewriteContext:
    """What a rule sees of the program around its node, and how it adds nodes.

    Nodes that a rule adds stand right above the node that it looks at; when the rule
    returns None they are forgotten.
    """

    def __init__(self, program: Program) -> None:
        self.changed = False
        self._program = program
        self._params = {str(value): value for value in program.params}
        self._done: dict[str, Node] = {}
        self._added: list[Node] = []
        self._given: set[str] = set()
        self._declared: dict[str, Value] = {}
        self._replaced: dict[str, Value] = {}
        self._node: Node | None = None
        self._names = {value.name for value in program.inputs}
        self._names.update(node.result.name for node in program.nodes)
        self._reads = Counter(str(value) for node in program.nodes for value in node.inputs)
        self._reads.update(map(str, program.outputs))

    def producer(self, value: Value) -> Node | None:
        """The node above that makes a value; None for an input or a parameter."""
        value = self._current(value)
        added = {str(node.result): node for node in self._added}
        return added.get(str(value)) or self._done.get(str(value))

    def users(self, value: Value) -> int:
        """How often the program reads a value, its outputs included, as it stands now."""
        return self._reads[str(self._current(value))]

    def param(self, path: str, type_: TensorType) -> Value:
        """The parameter at a path of the user's module, declared if it was not."""
        value = Value(path, type_, param=True)
        known = self._params.get(str(value)) or self._declared.setdefault(str(value), value)
        if known != value:
            raise InternalError(f"{value} is declared as {known.type}, asked for as {type_}")
        return value

    def add(
        self,
        op: str,
        inputs: Iterable[Value],
        type_: TensorType,
        attrs: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        span: SourceSpan | None = None,
    ) -> Value:
        """A new node above the present one.

        Args:
            op, inputs, type_, attrs: as in `ProgramBuilder.add`.
            name: a hint; without it the node that takes the place of the present one
                takes its name too.
            span: where the user wrote it; the present node's place if not given.
        """
        here = self._node
        result = Value(self._fresh_name(name or op.rsplit(".", 1)[-1]), type_)
        operands = tuple(self._current(value) for value in inputs)
        span = span or (here.span if here else None)
        self._added.append(Node(result, op, operands, Attrs(attrs or {}), span))
        if name is not None and here is not None and name != here.result.name:
            self._given.add(result.name)
        return result

    def _visit(self, node: Node, rules: Sequence[RewriteRule]) -> RewriteRule | None:
        """Apply the first rule that changes the node; the rule, or None."""
        # Operands that were replaced above are read under their new names.
        node = replace(node, inputs=tuple(map(self._current, node.inputs)))
        for rule in rules:
            if not rule.matches(node):
                continue
            self._node = node
            self._added, self._given, self._declared = [], set(), {}
            value = rule.apply(node, self)
            if value is not None and value != node.result:
                self._replace(node, self._current(value))
                self._added = []
                return rule
            self._names.difference_update(added.result.name for added in self._added)
            self._added = []
        self._done[str(node.result)] = node
        return None

    def _replace(self, node: Node, value: Value) -> None:
        if value.type != node.result.type:
            raise InternalError(
                f"the rewrite of {node.op!r} replaces {node.result}: {node.result.type} "
                f"by {value}: {value.type}; a replacement keeps the type"
            )
        added = self._added
        self._params.update(self._declared)
        if value.name not in self._given and any(new.result == value for new in added):
            # The new node takes the old name, so that uses and golden texts stay.
            self._names.discard(value.name)
            added = [_renamed(new, value, node.result) for new in added]
        elif value in (new.result for new in added) or self._is_defined(value):
            # The old name stays taken: nodes below still read it until they are visited.
            self._replaced[str(node.result)] = value
            self._reads[str(value)] += self._reads.pop(str(node.result), 0)
        else:
            raise InternalError(f"the rewrite of {node.op!r} gives {value}, not defined above it")
        self._reads.subtract(map(str, node.inputs))
        for new in added:
            self._done[str(new.result)] = new
            self._reads.update(map(str, new.inputs))
        self.changed = True

    def _is_defined(self, value: Value) -> bool:
        return (
            value in self._program.inputs
            or self._params.get(str(value)) == value
            or (str(value) in self._done and self._done[str(value)].result == value)
        )

    def _current(self, value: Value) -> Value:
        # A replacement is final when it is recorded, so one step is enough.
        return self._replaced.get(str(value), value)

    def _fresh_name(self, hint: str) -> str:
        name, count = hint, 0
        while name in self._names:
            count += 1
            name = f"{hint}_{count}"
        self._names.add(name)
        return name

    def _finish(self) -> Program:
        return replace(
            self._program,
            params=tuple(self._params.values()),
            nodes=tuple(self._done.values()),
            outputs=tuple(map(self._current, self._program.outputs)),
        )


def rewrite_program(program: Program, rules: Sequence[RewriteRule]) -> Program:
    """Apply rules to all nodes, in order and again, until none changes anything.

    Nodes whose result is no longer read stay; `dead_code_elimination` drops them.

    Args:
        program: the program to change.
        rules: tried in order at each node; the first that answers wins.

    Raises:
        InternalError: when the rules go on for ever.
    """
    left = 1000 + 20 * len(program.nodes)
    current = program
    while True:
        context = RewriteContext(current)
        for node in current.nodes:
            rule = context._visit(node, rules)
            left -= rule is not None
            if left < 0:
                error = InternalError(
                    f"this is a bug in BoundGraph: rewriting does not end; last at {node.op!r}"
                )
                error.add_note(f"the program before:\n{print_program(program)}")
                raise error
        if not context.changed:
            return current
        current = context._finish()


def dead_code_elimination(program: Program) -> Program:
    """Drop nodes and parameters that no output needs; inputs stay, they are the signature."""
    needed = set(map(str, program.outputs))
    kept = []
    for node in reversed(program.nodes):
        if str(node.result) in needed:
            kept.append(node)
            needed.update(map(str, node.inputs))
    params = tuple(value for value in program.params if str(value) in needed)
    return program.with_nodes(reversed(kept), params=params)


def common_subexpressions(program: Program) -> Program:
    """Compute once what is computed twice: same op, operands, attributes and type.

    Symbolic results are merged only if they name the same blocks, which the type tells.
    """
    first: dict[object, Value] = {}
    merged: dict[str, Value] = {}
    kept = []
    for node in program.nodes:
        node = replace(node, inputs=tuple(merged.get(str(value), value) for value in node.inputs))
        key = (node.op, node.inputs, node.attrs, node.result.type)
        known = first.setdefault(key, node.result)
        if known == node.result:
            kept.append(node)
        else:
            merged[str(node.result)] = known
    outputs = tuple(merged.get(str(value), value) for value in program.outputs)
    return program.with_nodes(kept, outputs=outputs)


def _renamed(node: Node, old: Value, new: Value) -> Node:
    inputs = tuple(new if value == old else value for value in node.inputs)
    return replace(node, result=new if node.result == old else node.result, inputs=inputs)
