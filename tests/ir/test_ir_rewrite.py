"""Rewriting: redirected uses, stable names, a fixed point, an end; the two clean-ups."""

from __future__ import annotations

from inspect import cleandoc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boundgraph.errors import InternalError
from boundgraph.ir.parser import parse_program
from boundgraph.ir.program import Node, Program, Value
from boundgraph.ir.rewrite import (
    RewriteContext,
    RewriteRule,
    common_subexpressions,
    dead_code_elimination,
    rewrite_program,
)
from boundgraph.ir.types import TensorType
from boundgraph.ir.verifier import verify
from boundgraph.source import SourceSpan


def check(program: Program, expected: str) -> None:
    verify(program)
    assert str(program) == cleandoc(expected)


def drop_double_relu(node: Node, ctx: RewriteContext) -> Value | None:
    made_by = ctx.producer(node.inputs[0])
    return node.inputs[0] if made_by is not None and made_by.op == "relu" else None


def split_linear(node: Node, ctx: RewriteContext) -> Value | None:
    """linear(x, w, b) = matmul(x, w) + b"""
    if len(node.inputs) < 3:
        return None
    x, weight, bias = node.inputs
    product = ctx.add("matmul", [x, weight], node.result.type, name="product")
    return ctx.add("add", [product, bias], node.result.type)


def test_uses_are_redirected_to_an_existing_value() -> None:
    program = parse_program("""
        program(%x: f32[2]) {
          %a: f32[2] = relu(%x)
          %b: f32[2] = relu(%a)
          %c: f32[2] = relu(%b)
          %d: f32[2] = add(%b, %c)
          return %c, %d
        }""")
    check(
        rewrite_program(program, [RewriteRule("relu", drop_double_relu)]),
        """
        program(%x: f32[2]) stage=concrete {
          %a: f32[2] = relu(%x)
          %d: f32[2] = add(%a, %a)
          return %a, %d
        }""",
    )


def test_the_new_node_takes_the_old_name() -> None:
    program = parse_program("""
        program(%x: f32[2]) {
          param @w: f32[2, 2]
          param @b: f32[2]
          %linear: f32[2] = linear(%x, @w, @b)
          %product: f32[2] = linear(%linear, @w, @b)
          return %product
        }""")
    check(
        rewrite_program(program, [RewriteRule("linear", split_linear)]),
        """
        program(%x: f32[2]) stage=concrete {
          param @w: f32[2, 2]
          param @b: f32[2]
          %product_1: f32[2] = matmul(%x, @w)
          %linear: f32[2] = add(%product_1, @b)
          %product_2: f32[2] = matmul(%linear, @w)
          %product: f32[2] = add(%product_2, @b)
          return %product
        }""",
    )


def test_a_name_that_a_rule_gives_is_kept() -> None:
    def rename(node: Node, ctx: RewriteContext) -> Value | None:
        return ctx.add("relu", node.inputs, node.result.type, {"k": [1]}, name="given")

    program = parse_program(
        "program(%x: f32[2]) { %a: f32[2] = old(%x) %b: f32[2] = exp(%a) return %b, %a }"
    )
    check(
        rewrite_program(program, [RewriteRule("old", rename)]),
        """
        program(%x: f32[2]) stage=concrete {
          %given: f32[2] = relu(%x) {k=(1,)}
          %b: f32[2] = exp(%given)
          return %b, %given
        }""",
    )


def test_an_old_name_is_not_reused_while_nodes_below_read_it() -> None:
    def forward(node: Node, ctx: RewriteContext) -> Value | None:
        return node.inputs[0]

    def add_named(node: Node, ctx: RewriteContext) -> Value | None:
        other = ctx.add("other", node.inputs, node.result.type, name="a")
        return ctx.add("new", [other, *node.inputs], node.result.type)

    program = parse_program("""
        program(%x: f32[2]) {
          %a: f32[2] = identity(%x)
          %c: f32[2] = old(%x)
          %d: f32[2] = add(%a, %c)
          return %d
        }""")
    check(
        rewrite_program(program, [RewriteRule("identity", forward), RewriteRule("old", add_named)]),
        """
        program(%x: f32[2]) stage=concrete {
          %a_1: f32[2] = other(%x)
          %c: f32[2] = new(%a_1, %x)
          %d: f32[2] = add(%x, %c)
          return %d
        }""",
    )


def test_rules_meet_each_others_results() -> None:
    """exp(log(x)) = x is found only after neg(neg(x)) = x made the two neighbours."""

    def cancel(outer: str, inner: str) -> RewriteRule:
        def apply(node: Node, ctx: RewriteContext) -> Value | None:
            made_by = ctx.producer(node.inputs[0])
            return made_by.inputs[0] if made_by is not None and made_by.op == inner else None

        return RewriteRule(outer, apply)

    program = parse_program("""
        program(%x: f32[2]) {
          %a: f32[2] = log(%x)
          %b: f32[2] = neg(%a)
          %c: f32[2] = neg(%b)
          %d: f32[2] = exp(%c)
          return %d
        }""")
    result = rewrite_program(program, [cancel("exp", "log"), cancel("neg", "neg")])
    assert result.outputs == program.inputs
    assert dead_code_elimination(result).nodes == ()


def test_new_parameters_and_spans() -> None:
    matrix = TensorType("f32", (2, 2))

    def give_weight(node: Node, ctx: RewriteContext) -> Value | None:
        return ctx.add("linear", [*node.inputs, ctx.param("w", matrix)], node.result.type)

    def ask_only(node: Node, ctx: RewriteContext) -> Value | None:
        ctx.param("unused", matrix)
        ctx.add("unused", node.inputs, node.result.type)
        return None

    program = parse_program("program(%x: f32[2]) { %a: f32[2] = old(%x) return %a }")
    span = SourceSpan("model.py", 3)
    program = program.with_nodes([Node(n.result, n.op, n.inputs, span=span) for n in program.nodes])
    result = rewrite_program(program, [RewriteRule("*", ask_only), RewriteRule("old", give_weight)])
    check(
        result,
        """
        program(%x: f32[2]) stage=concrete {
          param @w: f32[2, 2]
          %a: f32[2] = linear(%x, @w)
          return %a
        }""",
    )
    assert result.nodes[0].span == span


def test_users_counts_reads_and_outputs() -> None:
    seen: dict[str, int] = {}

    def look(node: Node, ctx: RewriteContext) -> Value | None:
        seen.update({str(value): ctx.users(value) for value in (*node.inputs, node.result)})
        return None

    program = parse_program("""
        program(%x: f32[2]) {
          %a: f32[2] = relu(%x)
          %b: f32[2] = mul(%a, %a)
          %c: f32[2] = add(%a, %b)
          return %c, %c
        }""")
    assert rewrite_program(program, [RewriteRule("*", look)]) == program
    assert seen == {"%x": 1, "%a": 3, "%b": 1, "%c": 2}


def test_users_follows_the_rewriting() -> None:
    seen: list[int] = []

    def forward(node: Node, ctx: RewriteContext) -> Value | None:
        return node.inputs[0]

    def look(node: Node, ctx: RewriteContext) -> Value | None:
        seen.append(ctx.users(node.inputs[0]))
        return None

    program = parse_program("""
        program(%x: f32[2]) {
          %a: f32[2] = identity(%x)
          %b: f32[2] = relu(%a)
          %c: f32[2] = exp(%a)
          return %b, %c
        }""")
    rewrite_program(program, [RewriteRule("identity", forward), RewriteRule("relu", look)])
    assert seen == [2, 2]


def test_rewriting_that_does_not_end_is_an_error() -> None:
    def flip(node: Node, ctx: RewriteContext) -> Value | None:
        op = {"a": "b", "b": "a"}[node.op]
        return ctx.add(op, node.inputs, node.result.type)

    def grow(node: Node, ctx: RewriteContext) -> Value | None:
        half = ctx.add("a", node.inputs, node.result.type)
        return ctx.add("a", [half], node.result.type)

    program = parse_program("program(%x: f32[2]) { %r: f32[2] = a(%x) return %r }")
    for rules in ([RewriteRule("a", flip), RewriteRule("b", flip)], [RewriteRule("a", grow)]):
        with pytest.raises(InternalError, match="does not end") as caught:
            rewrite_program(program, rules)
        assert str(program) in caught.value.__notes__[0]


def test_a_replacement_keeps_the_type_and_is_defined() -> None:
    program = parse_program(
        "program(%x: f32[2]) { %r: f32[2] = a(%x) %s: f32[2] = c(%r) return %s }"
    )

    def retype(node: Node, ctx: RewriteContext) -> Value | None:
        return ctx.add("b", node.inputs, TensorType("f32", (3,)))

    def invent(node: Node, ctx: RewriteContext) -> Value | None:
        return Value("s", node.result.type)

    def clash(node: Node, ctx: RewriteContext) -> Value | None:
        ctx.param("w", TensorType("f32", ()))
        return ctx.param("w", node.result.type)

    for rule, message in ((retype, "keeps the type"), (invent, "not defined"), (clash, "declared")):
        with pytest.raises(InternalError, match=message):
            rewrite_program(program, [RewriteRule("a", rule)])


def test_dead_code_goes_and_inputs_stay() -> None:
    program = parse_program("""
        program(%x: f32[2], %y: f32[2]) {
          param @w: f32[2, 2]
          param @v: f32[2, 2]
          %a: f32[2] = linear(%x, @w)
          %b: f32[2] = relu(%a)
          %c: f32[2] = linear(%x, @v)
          return %c
        }""")
    check(
        dead_code_elimination(program),
        """
        program(%x: f32[2], %y: f32[2]) stage=concrete {
          param @v: f32[2, 2]
          %c: f32[2] = linear(%x, @v)
          return %c
        }""",
    )


def test_equal_computations_are_merged_and_others_are_not() -> None:
    program = parse_program("""
        program(%x: f32[2]) {
          %a: f32[2] = relu(%x)
          %b: f32[2] = relu(%x)
          %c: f32[2] = exp(%b)
          %d: f32[2] = exp(%a)
          %e: f32[2] = clamp(%x) {min=0.0}
          %f: f32[2] = clamp(%x) {min=-0.0}
          %g: f32[2] = clamp(%x) {min=0}
          return %c, %d, %b, %e, %f, %g
        }""")
    check(
        common_subexpressions(program),
        """
        program(%x: f32[2]) stage=concrete {
          %a: f32[2] = relu(%x)
          %c: f32[2] = exp(%a)
          %e: f32[2] = clamp(%x) {min=0.0}
          %f: f32[2] = clamp(%x) {min=-0.0}
          %g: f32[2] = clamp(%x) {min=0}
          return %c, %c, %a, %e, %f, %g
        }""",
    )


def test_symbolic_values_of_different_blocks_are_not_merged() -> None:
    program = parse_program("""
        program(%x: symbolic f32[2] over (x)) stage=bounded {
          %a: symbolic f32[2] over (x, a) = symbolic.relu(%x)
          %b: symbolic f32[2] over (x, b) = symbolic.relu(%x)
          return %a, %b
        }""")
    assert common_subexpressions(program) == program


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_clean_ups_are_idempotent_and_keep_the_signature(
    programs: st.SearchStrategy[Program], data: st.DataObject
) -> None:
    program = data.draw(programs)
    for clean in (dead_code_elimination, common_subexpressions):
        once = clean(program)
        assert clean(once) == once
        assert once.inputs == program.inputs
        assert [value.type for value in once.outputs] == [value.type for value in program.outputs]
        assert {node.op for node in once.nodes} <= {node.op for node in program.nodes}
