"""Every rule of every stage fires on a program that breaks it and on nothing else."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from boundgraph.errors import InternalError, VerifyError
from boundgraph.ir.parser import parse_program
from boundgraph.ir.program import Attrs, Node, Program, Value
from boundgraph.ir.types import Dim, IntervalType, Stage, SymbolicType, TensorType
from boundgraph.ir.verifier import RULES, rule_name, verify

VEC = TensorType("f32", (Dim("b"), 4))
BOX = IntervalType("f32", (Dim("b"), 4))
ZONO = SymbolicType("f32", (Dim("b"), 4), ("x",))

CONCRETE = parse_program("""
    program(%x: f32[b, 4]) {
      param @w: f32[4, 4]
      %l: f32[b, 4] = linear(%x, @w)
      %r: f32[b, 4] = relu(%l) {inplace=False}
      return %r, %x, @w
    }""")
BOUNDED = parse_program("""
    program(%x: f32[b, 4], %eps: f32[]) stage=bounded {
      param @w: f32[4, 4]
      %abs: f32[4, 4] = abs(@w)
      %box: interval f32[b, 4] = interval.source(%x, %eps)
      %z: symbolic f32[b, 4] over (x) = symbolic.source(%x, %eps)
      %l: symbolic f32[b, 4] over (x) = symbolic.linear(%z, %abs)
      %r: symbolic f32[b, 4] over (x, r) = symbolic.relu(%l, %box)
      %s: symbolic f32[b, 4] over (r, x) = symbolic.add(%l, %r)
      %c: interval f32[b, 4] = symbolic.concretize(%s)
      return %c
    }""")


class Table:
    """A registry of a handful of ops."""

    def known(self, op: str) -> bool:
        return op != "mystery"

    def infer(self, node: Node) -> TensorType | None:
        if node.op == "add":
            first, second = node.inputs
            if first.type != second.type:
                raise ValueError(f"{first.type} does not fit {second.type}")
        return node.inputs[0].type if node.op in ("relu", "add") else None

    def arity(self, op: str) -> tuple[int, int | None] | None:
        return {"relu": (1, 1), "linear": (2, 3), "cat": (1, None)}.get(op)

    def source(self, op: str) -> bool:
        return op.endswith(".source")


def value(name: str, type_: TensorType = VEC, *, param: bool = False) -> Value:
    return Value(name, type_, param)


X, R = value("x"), value("r")
W = value("w", TensorType("f32", (4, 4)), param=True)
I, P = value("i", BOX), value("p", ZONO)  # noqa: E741
Q = value("q", replace(ZONO, blocks=("y",)))
BOTH = replace(ZONO, blocks=("x", "y"))


def node(result: Value, op: str, *inputs: Value, **attrs: object) -> Node:
    return Node(result, op, inputs, Attrs(attrs))


def concrete(*nodes: Node, **changes: Any) -> Program:
    return replace(Program((X,), (W,), nodes, (X,)), **changes)


def bounded(*nodes: Node, **changes: Any) -> Program:
    """Over an interval `%i` and symbolic values `%p` and `%q` of one block each."""
    return replace(Program((X, I, P, Q), (W,), nodes, (X,), Stage.BOUNDED), **changes)


# By rule: programs that break it, and nothing else, each with a piece of the message.
BROKEN: dict[str, list[tuple[Program, str]]] = {
    "names-are-printable": [
        (concrete(node(value("a b"), "relu", X)), "'a b'"),
        (concrete(node(R, "aten::relu", X)), "'aten::relu'"),
        (concrete(inputs=(X, value(""))), "''"),
    ],
    "types-are-well-formed": [
        (concrete(inputs=(X, value("y", TensorType("f32", (-1,))))), "-1"),
        (concrete(inputs=(X, value("y", TensorType("f32", (True,))))), "True"),
        (concrete(inputs=(X, value("y", TensorType("f32", (Dim("a b"),))))), "a b"),
        (concrete(inputs=(X, value("y", TensorType("f32", (Dim("inf"),))))), "inf"),
        (bounded(inputs=(X, value("y", replace(ZONO, blocks=("u", "u"))))), "twice"),
        (bounded(inputs=(X, value("y", replace(ZONO, blocks=("u v",))))), "'u v'"),
    ],
    "values-are-in-their-place": [
        (concrete(inputs=(X, value("y", param=True))), "@y"),
        (concrete(node(value("y", param=True), "relu", X)), "@y"),
        (concrete(params=(W, value("y"))), "%y"),
    ],
    "names-are-defined-once": [
        (concrete(node(R, "relu", X), node(R, "relu", X)), "%r"),
        (concrete(node(X, "relu", X)), "%x"),
    ],
    "params-are-declared-once": [(concrete(params=(W, W)), "@w")],
    "params-are-declared": [(concrete(node(R, "linear", X, W), params=()), "@w")],
    "uses-follow-definitions": [
        (concrete(node(R, "relu", value("s")), node(value("s"), "relu", X)), "%s"),
        (concrete(node(R, "relu", R)), "%r"),
        (
            concrete(node(R, "linear", X, replace(W, type=VEC))),
            "as f32[b, 4], defined as f32[4, 4]",
        ),
        (concrete(node(R, "linear", value("x", TensorType("f32", (4,))), W)), "as f32[4]"),
    ],
    "outputs-are-defined": [
        (concrete(outputs=(value("gone"),)), "%gone"),
        (concrete(outputs=(value("x", TensorType("f32", ())),)), "%x"),
        (concrete(params=(), outputs=(W,)), "@w"),
    ],
    "ops-are-registered": [(concrete(node(R, "mystery", X)), "'mystery'")],
    "arity-fits": [
        (concrete(node(R, "relu", X, X)), "takes 1 operands, got 2"),
        (concrete(node(R, "linear", X)), "takes 2 to 3"),
        (concrete(node(R, "cat")), "takes 1 or more"),
    ],
    "types-follow-the-op": [
        (concrete(node(value("r", TensorType("f32", (4,))), "relu", X)), "relu gives f32[b, 4]"),
        (concrete(node(R, "add", X, W)), "does not fit"),
    ],
    "attrs-are-plain": [
        (concrete(node(R, "relu", X, a=Fraction(1, 2))), "a=Fraction(1, 2)"),
        (concrete(node(R, "relu", X, a=(1, {"b": 2}))), "not plain"),
        (concrete(node(R, "relu", X, a=Stage.CONCRETE)), "not plain"),
        (concrete(node(R, "relu", X, a=Dim("nan"))), "not plain"),
        (concrete(node(R, "relu", X, **{"a b": 1})), "'a b'"),
        (concrete(Node(R, "relu", (X,), Attrs([("a", 1), ("a", 2)]))), "twice"),
    ],
    "values-are-concrete": [
        (concrete(inputs=(X, I)), "%i"),
        (concrete(node(value("r", ZONO), "make")), "%r"),
    ],
    "ops-are-concrete": [
        (concrete(node(R, "interval.relu", X)), "interval.relu"),
        (concrete(node(R, "symbolic.relu", X)), "symbolic.relu"),
    ],
    "bounded-ops-give-bounds": [
        (bounded(node(value("r", VEC), "interval.relu", I)), "gives an interval"),
        (bounded(node(value("r", ZONO), "interval.relu", P)), "gives an interval"),
        (bounded(node(value("r", BOX), "symbolic.relu", P)), "gives a symbolic type"),
        (bounded(node(value("r", ZONO), "symbolic.concretize", P)), "gives an interval"),
    ],
    "concrete-ops-stay-concrete": [
        (bounded(node(value("r", VEC), "flatten", I)), "meets %i"),
        (bounded(node(value("r", BOX), "flatten", X)), "meets %r"),
    ],
    "bounded-ops-have-bounds": [(bounded(node(value("r", BOX), "interval.relu", X)), "no source")],
    "blocks-are-kept": [
        (bounded(node(value("r", ZONO), "symbolic.add", P, Q)), "drops the blocks y"),
        (bounded(node(value("r", replace(ZONO, blocks=("r",))), "symbolic.relu", P)), "blocks x"),
    ],
    "blocks-have-one-origin": [
        (
            bounded(
                node(value("r", replace(ZONO, blocks=("x", "n"))), "symbolic.relu", P),
                node(value("s", replace(ZONO, blocks=("x", "n"))), "symbolic.relu", P),
            ),
            "%s introduces the block n, as %r did",
        ),
        (bounded(node(value("r", BOTH), "symbolic.relu", P)), "block y, as the inputs did"),
    ],
}
CASES = [(rule, *case) for rule, cases in BROKEN.items() for case in cases]


@pytest.mark.parametrize(
    "program", [CONCRETE, BOUNDED, concrete(), bounded()], ids=lambda p: p.stage
)
def test_legal_programs_pass(program: Program) -> None:
    verify(program)
    verify(program, Table())


def test_shared_blocks_may_meet() -> None:
    """A sum of values over different blocks depends on the union of them."""
    verify(bounded(node(value("r", BOTH), "symbolic.add", P, Q)))


@pytest.mark.parametrize(
    "rule", sorted({rule_name(rule) for rules in RULES.values() for rule in rules})
)
def test_every_rule_has_a_program_that_breaks_it(rule: str) -> None:
    assert BROKEN.get(rule)


@pytest.mark.parametrize(("rule", "program", "piece"), CASES, ids=[case[0] for case in CASES])
def test_rule_fires_alone(rule: str, program: Program, piece: str) -> None:
    with pytest.raises(VerifyError) as caught:
        verify(program, Table())
    _, *violations = str(caught.value).split("\n")
    assert violations
    assert all(line.startswith(f"  - {rule}: ") for line in violations)
    assert piece in violations[0]


def test_all_violations_are_collected_with_the_program() -> None:
    program = concrete(node(R, "mystery", value("gone")), outputs=(value("lost"),))
    with pytest.raises(InternalError, match="this is a bug in BoundGraph") as caught:
        verify(program, Table())
    text = str(caught.value)
    for rule in ("uses-follow-definitions", "ops-are-registered", "outputs-are-defined"):
        assert f"- {rule}: " in text
    assert any(str(program) in note for note in caught.value.__notes__)


def test_without_a_table_every_op_is_accepted() -> None:
    verify(concrete(node(R, "mystery")))
    verify(bounded(node(value("r", BOX), "interval.mystery", X)))
