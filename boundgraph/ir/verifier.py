"""Check that a program is legal for its stage.

A program that breaks a rule here is a bug in BoundGraph, never the user's mistake, so
every violation is collected and shown together with the program.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from boundgraph.errors import BoundGraphError, VerifyError
from boundgraph.ir.printer import print_node, print_program
from boundgraph.ir.program import Node, Program, Value
from boundgraph.ir.types import Dim, FormType, IntervalType, Stage, SymbolicType, TensorType

INTERVAL_PREFIX = "interval."
SYMBOLIC_PREFIX = "symbolic."
BACKWARD_PREFIX = "backward."
# Turns forms into the interval of the value that they started from.
ASSEMBLE = ("backward.assemble", "backward.sound.assemble")
# The symbolic ops whose result is an interval: they give the symbols up.
CONCRETIZE = ("symbolic.concretize", "symbolic.sound.concretize")

_NAME = re.compile(r"[A-Za-z0-9_.]+")
# A submodule may be called `block1-0`.
_VALUE = re.compile(r"[A-Za-z0-9_.-]+")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Words that the text format reads as attribute values, not as the symbol of a size.
_RESERVED = {"True", "False", "None", "inf", "nan"}


class OpTable(Protocol):
    """What the verifier asks about ops; the registry of ops implements it."""

    def known(self, op: str) -> bool:
        """Whether the op exists."""

    def infer(self, node: Node) -> TensorType | None:
        """The type the node's result must have, or None where no rule says."""

    def arity(self, op: str) -> tuple[int, int | None] | None:
        """Fewest and most operands (None: no limit), or None where no rule says."""

    def source(self, op: str) -> bool:
        """Whether a bounded op may make a bound out of plain operands."""


class AnyOp:
    """The table that accepts every op."""

    def known(self, op: str) -> bool:
        return True

    def infer(self, node: Node) -> TensorType | None:
        return None

    def arity(self, op: str) -> tuple[int, int | None] | None:
        return None

    def source(self, op: str) -> bool:
        return True


Rule = Callable[[Program, OpTable], Iterator[str]]


def verify(program: Program, ops: OpTable | None = None) -> None:
    """Raise unless the program keeps every rule of its stage.

    Args:
        program: the program to check.
        ops: what is known about ops; without it every op is accepted.

    Raises:
        VerifyError: lists all violations, each with its rule; the program is a note.
    """
    table = ops or AnyOp()
    found = [
        f"{rule_name(rule)}: {text}"
        for rule in RULES[program.stage]
        for text in rule(program, table)
    ]
    if not found:
        return
    listing = "\n".join(f"  - {text}" for text in found)
    error = VerifyError(
        "this is a bug in BoundGraph: "
        f"a program of stage {program.stage} breaks its rules\n{listing}"
    )
    error.add_note(f"the program:\n{print_program(program)}")
    raise error


def rule_name(rule: Rule) -> str:
    """`names_are_printable` reads `names-are-printable` in messages."""
    return str(getattr(rule, "__name__", rule)).replace("_", "-")


# Rules of every stage.


def names_are_printable(program: Program, ops: OpTable) -> Iterator[str]:
    """Names outside this alphabet would not survive the text format."""
    for value in _defined(program):
        if not _VALUE.fullmatch(value.name):
            yield f"the name {value.name!r} has characters outside A-Z a-z 0-9 _ . -"
    for node in program.nodes:
        if not _NAME.fullmatch(node.op):
            yield f"the op {node.op!r} has characters outside A-Z a-z 0-9 _ ."


def types_are_well_formed(program: Program, ops: OpTable) -> Iterator[str]:
    for value in _defined(program):
        for entry in value.type.shape:
            if not _is_size(entry):
                yield f"{value} has the size {entry!r}"
        if isinstance(value.type, SymbolicType):
            blocks = value.type.blocks
            if len(set(blocks)) < len(blocks):
                yield f"{value} names a block twice: {', '.join(blocks)}"
            for block in blocks:
                if not _NAME.fullmatch(block):
                    yield f"{value} has a block {block!r} that does not print"


def values_are_in_their_place(program: Program, ops: OpTable) -> Iterator[str]:
    """Only the declared parameters are marked as parameters."""
    for value in (*program.inputs, *(node.result for node in program.nodes)):
        if value.param:
            yield f"{value} is marked as a parameter but is an input or a result"
    for value in program.params:
        if not value.param:
            yield f"{value} is declared as a parameter but not marked as one"


def names_are_defined_once(program: Program, ops: OpTable) -> Iterator[str]:
    seen: set[str] = set()
    for value in (*program.inputs, *(node.result for node in program.nodes)):
        if str(value) in seen:
            yield f"{value} is defined more than once"
        seen.add(str(value))


def params_are_declared_once(program: Program, ops: OpTable) -> Iterator[str]:
    seen: set[str] = set()
    for value in program.params:
        if str(value) in seen:
            yield f"{value} is declared more than once"
        seen.add(str(value))


def params_are_declared(program: Program, ops: OpTable) -> Iterator[str]:
    declared = {str(value) for value in program.params}
    for node in program.nodes:
        for value in node.inputs:
            if value.param and str(value) not in declared:
                yield f"{node.result} reads {value}, which is not declared"


def uses_follow_definitions(program: Program, ops: OpTable) -> Iterator[str]:
    """An operand is defined above its use, and is the value that was defined there."""
    scope = {str(value): value for value in (*program.inputs, *program.params)}
    for node in program.nodes:
        for value in node.inputs:
            definition = scope.get(str(value))
            if definition is None and not value.param:
                yield f"{node.result} reads {value}, which is not defined above it"
            elif definition is not None and definition != value:
                yield f"{node.result} reads {value} as {value.type}, defined as {definition.type}"
        scope[str(node.result)] = node.result


def outputs_are_defined(program: Program, ops: OpTable) -> Iterator[str]:
    scope = {str(value): value for value in _defined(program)}
    for value in program.outputs:
        definition = scope.get(str(value))
        if definition is None:
            yield f"the output {value} is not defined"
        elif definition != value:
            yield f"the output {value} has type {value.type}, defined as {definition.type}"


def ops_are_registered(program: Program, ops: OpTable) -> Iterator[str]:
    for node in program.nodes:
        if not ops.known(node.op):
            yield f"{node.result} uses the unknown op {node.op!r}"


def arity_fits(program: Program, ops: OpTable) -> Iterator[str]:
    for node in program.nodes:
        if not _arity_fits(node, ops):
            fewest, most = ops.arity(node.op) or (0, None)
            wanted = f"{fewest} or more" if most is None else f"{fewest} to {most}"
            wanted = str(fewest) if fewest == most else wanted
            yield f"{node.result}: {node.op} takes {wanted} operands, got {len(node.inputs)}"


def types_follow_the_op(program: Program, ops: OpTable) -> Iterator[str]:
    """The result's type is the one that the op's own type rule computes."""
    for node in program.nodes:
        # A type rule may assume that the op exists and has its operands.
        if not ops.known(node.op) or not _arity_fits(node, ops):
            continue
        try:
            expected = ops.infer(node)
        except (BoundGraphError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            yield f"{print_node(node)} has no type: {error}"
            continue
        if expected is not None and expected != node.result.type:
            yield f"{node.result} has type {node.result.type}, {node.op} gives {expected}"


def attrs_are_plain(program: Program, ops: OpTable) -> Iterator[str]:
    """Attributes print, compare and pickle: no tensors, no subclasses, no live objects."""
    for node in program.nodes:
        names = list(node.attrs)
        if len(set(names)) < len(names):
            yield f"{node.result} has an attribute twice: {', '.join(names)}"
        for name, value in node.attrs.items():
            if not _IDENTIFIER.fullmatch(name):
                yield f"{node.result} has an attribute named {name!r}"
            if not _is_plain(value):
                yield f"{node.result} has the attribute {name}={value!r}, which is not plain"


# Rules of CONCRETE.


def values_are_concrete(program: Program, ops: OpTable) -> Iterator[str]:
    for value in _defined(program):
        if is_bounded(value.type):
            yield f"{value} has the bounded type {value.type}"


def ops_are_concrete(program: Program, ops: OpTable) -> Iterator[str]:
    for node in program.nodes:
        if is_bounded_op(node.op):
            yield f"{node.result} uses the bounded op {node.op}"


# Rules of BOUNDED.


def bounded_ops_give_bounds(program: Program, ops: OpTable) -> Iterator[str]:
    for node in program.nodes:
        if not is_bounded_op(node.op):
            continue
        wanted, kind = _result_of(node.op)
        if not isinstance(node.result.type, wanted):
            yield f"{node.result}: {node.op} gives {kind}, not {node.result.type}"


def _result_of(op: str) -> tuple[type[TensorType], str]:
    """The kind of type that a bounded op gives, and its name in messages."""
    if op.startswith(INTERVAL_PREFIX) or op in (*CONCRETIZE, *ASSEMBLE):
        return IntervalType, "an interval"
    if op.startswith(BACKWARD_PREFIX):
        return FormType, "a form"
    return SymbolicType, "a symbolic type"


def concrete_ops_stay_concrete(program: Program, ops: OpTable) -> Iterator[str]:
    """A plain op on a bound would compute with something else and drop the bound silently."""
    for node in program.nodes:
        if is_bounded_op(node.op):
            continue
        for value in (*node.inputs, node.result):
            if is_bounded(value.type):
                yield f"{node.result}: the concrete op {node.op} meets {value}: {value.type}"


def bounded_ops_have_bounds(program: Program, ops: OpTable) -> Iterator[str]:
    """Only a source op makes a bound; elsewhere one without bounded operands was lost."""
    for node in program.nodes:
        needs = is_bounded_op(node.op) and not ops.source(node.op)
        if needs and not any(is_bounded(value.type) for value in node.inputs):
            yield f"{node.result}: {node.op} has no bounded operand and is no source"


def blocks_are_kept(program: Program, ops: OpTable) -> Iterator[str]:
    """A symbolic result depends on all symbols of its operands: no correlation is dropped."""
    for node in program.nodes:
        if not isinstance(node.result.type, SymbolicType):
            continue
        lost = _operand_blocks(node) - set(node.result.type.blocks)
        if lost:
            yield f"{node.result} drops the blocks {', '.join(sorted(lost))}"


def blocks_have_one_origin(program: Program, ops: OpTable) -> Iterator[str]:
    """Two nodes that introduced one block would be taken for correlated; they are not."""
    origin: dict[str, str] = {}
    for value in (*program.inputs, *program.params):
        # Inputs may share a block: their caller knows that they are correlated.
        if isinstance(value.type, SymbolicType):
            origin.update(dict.fromkeys(value.type.blocks, "the inputs"))
    for node in program.nodes:
        if not isinstance(node.result.type, SymbolicType):
            continue
        inherited = _operand_blocks(node)
        for block in node.result.type.blocks:
            if block not in inherited:
                if block in origin:
                    yield f"{node.result} introduces the block {block}, as {origin[block]} did"
                origin.setdefault(block, str(node.result))


_EVERY_STAGE: tuple[Rule, ...] = (
    names_are_printable,
    types_are_well_formed,
    values_are_in_their_place,
    names_are_defined_once,
    params_are_declared_once,
    params_are_declared,
    uses_follow_definitions,
    outputs_are_defined,
    ops_are_registered,
    arity_fits,
    types_follow_the_op,
    attrs_are_plain,
)
RULES: dict[Stage, tuple[Rule, ...]] = {
    Stage.CONCRETE: (*_EVERY_STAGE, values_are_concrete, ops_are_concrete),
    Stage.BOUNDED: (
        *_EVERY_STAGE,
        bounded_ops_give_bounds,
        concrete_ops_stay_concrete,
        bounded_ops_have_bounds,
        blocks_are_kept,
        blocks_have_one_origin,
    ),
}


def is_bounded(type_: TensorType) -> bool:
    """Whether a type is a bound on a tensor rather than a tensor."""
    return isinstance(type_, IntervalType | SymbolicType | FormType)


def is_bounded_op(op: str) -> bool:
    """Whether an op works on bounds, which its prefix tells."""
    return op.startswith((INTERVAL_PREFIX, SYMBOLIC_PREFIX, BACKWARD_PREFIX))


def _defined(program: Program) -> tuple[Value, ...]:
    return (*program.inputs, *program.params, *(node.result for node in program.nodes))


def _operand_blocks(node: Node) -> set[str]:
    types = [value.type for value in node.inputs]
    return {block for type_ in types if isinstance(type_, SymbolicType) for block in type_.blocks}


def _arity_fits(node: Node, ops: OpTable) -> bool:
    fewest, most = ops.arity(node.op) or (0, None)
    return fewest <= len(node.inputs) and (most is None or len(node.inputs) <= most)


def _is_size(entry: Any) -> bool:
    return entry >= 0 if type(entry) is int else _is_dim(entry)


def _is_dim(entry: Any) -> bool:
    if type(entry) is not Dim or not _IDENTIFIER.fullmatch(entry.symbol):
        return False
    return entry.symbol not in _RESERVED and type(entry.coeff) is type(entry.offset) is int


def _is_plain(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_plain, value))
    if isinstance(value, Dim):
        return _is_dim(value)
    return value is None or type(value) in (bool, int, float, str)
