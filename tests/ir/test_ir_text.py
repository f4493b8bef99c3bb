"""The text format: printing and parsing are inverse, and mistakes are shown in place."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boundgraph.errors import ParseError
from boundgraph.ir.parser import parse_program
from boundgraph.ir.printer import print_attr, print_program
from boundgraph.ir.program import Attrs, Node, Program, ProgramBuilder
from boundgraph.ir.types import Dim, TensorType
from boundgraph.source import SourceSpan

CONCRETE = """\
program(%x: f32[b, 784], %y: i64[b]) stage=concrete {
  param @fc1.weight: f32[256, 784]
  param @fc1.bias: f32[256]
  %linear: f32[b, 256] = linear(%x, @fc1.weight, @fc1.bias)
  %view.1: f32[2*b+1, 16, 14, 14] = reshape(%linear) {shape=(2*b+1, 16, 14, 14), name="a\\"b # c"}
  %pool: f32[-1*b-3] = odd(%view.1) {a=(), b=(1,), c=((1, 2.5), None), d=-inf, e=nan, f=1e-05}
  return %linear, %pool, %linear
}"""
BOUNDED = """\
program(%x: interval f32[b, 784], %y: i64[]) stage=bounded {
  %h: interval f32[b, 256] = interval.linear(%x)
  %z: symbolic f32[b, 10] over (x, relu.1, 2) = symbolic.linear(%h)
  %e: symbolic f32[0] over () = symbolic.none()
  return %h
}"""
EMPTY = "program() stage=concrete {\n  return\n}"


@pytest.mark.parametrize("text", [CONCRETE, BOUNDED, EMPTY], ids=["concrete", "bounded", "empty"])
def test_print_of_parse_is_the_text(text: str) -> None:
    assert print_program(parse_program(text)) == text


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_parse_of_print_is_the_program(
    programs: st.SearchStrategy[Program], data: st.DataObject
) -> None:
    program = data.draw(programs)
    text = print_program(program)
    assert parse_program(text) == program
    assert print_program(parse_program(text)) == text
    assert parse_program(print_program(program, spans=True)) == program


def test_str_of_a_program_is_its_text() -> None:
    assert str(parse_program(CONCRETE)) == CONCRETE


def test_stage_and_layout_are_free_when_reading() -> None:
    loose = "program(%x:f32[2])\n{ # a comment\n\t%r:f32[ 2 ]=relu( %x )\n\n return %r}\n"
    assert str(parse_program(loose)) == (
        "program(%x: f32[2]) stage=concrete {\n  %r: f32[2] = relu(%x)\n  return %r\n}"
    )


def test_spans_are_printed_on_request_only() -> None:
    builder = ProgramBuilder()
    x = builder.input("x", TensorType("f32", (2,)))
    span = SourceSpan("model.py", 7, "return x.relu()\n# more", "head")
    program = builder.build([builder.add("relu", [x], x.type, span=span)])
    assert "model.py" not in print_program(program)
    text = print_program(program, spans=True)
    assert "relu(%x)  # model.py:7, in module 'head' return x.relu() # more\n" in text
    assert parse_program(text) == program


def test_attributes_that_python_takes_for_equal_differ() -> None:
    """1 == 1.0 == True and 0.0 == -0.0, but they do not mean the same to an op."""
    values = [1, 1.0, True, 0, 0.0, -0.0, False, None, math.nan, "1", (), (1,), (1.0,)]
    attrs = [Attrs({"a": value}) for value in values]
    assert len(set(attrs)) == len(values)
    assert Attrs({"a": float("nan")}) == Attrs({"a": float("nan")})
    assert Attrs({"a": [1, [2]]}) == Attrs({"a": (1, (2,))})


def test_what_is_not_plain_prints_but_does_not_parse() -> None:
    x = ProgramBuilder().input("x", TensorType("f32", ()))
    program = Program((x,), (), (Node(x, "f", (), Attrs({"a": object})),), (x,))
    assert print_attr(object) == "<<class 'object'>>"
    with pytest.raises(ParseError, match="line 2"):
        parse_program(str(program))


LINE = "program(%x: f32[b]) {\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "expected 'program', found 'the end of the text'"),
        ("program(x: f32[2]) { return }", 1, "expected a name with '%', found 'x'"),
        ("program(@x: f32[2]) { return }", 1, "expected a name with '%', found '@x'"),
        ("program() stage=warm { return }", 1, "unknown stage 'warm'; known: concrete, bounded"),
        ("program(%x: f33[2]) { return }", 1, "unknown dtype 'f33'"),
        ("program(%x: f32[2.5]) { return }", 1, "expected a size, found '2.5'"),
        ("program(%x: f32[0*b]) { return }", 1, "coefficient 0"),
        ("program(%x: f32[2 3]) { return }", 1, "expected ',', found '3'"),
        ("program(%x: interval symbolic f32[2]) { return }", 1, "not both"),
        ("program(%x: symbolic f32[2]) { return }", 1, "expected 'over', found ')'"),
        (LINE + "  %r: f32[b] = relu(%z)\n  return %r\n}", 2, "%z is not defined above"),
        (LINE + "  %r: f32[b] = relu(%r)\n  return %r\n}", 2, "%r is not defined above"),
        (LINE + "  %x: f32[b] = relu(%x)\n  return %x\n}", 2, "%x is defined a second time"),
        (LINE + "  %r: f32[b] = relu(@w)\n  return %r\n}", 2, "@w is not defined above"),
        (LINE + "  %r: f32[b] relu(%x)\n  return %r\n}", 2, "expected '=', found 'relu'"),
        (LINE + "  %r: f32[b] = relu(%x) {a=(1)}\n  return\n}", 2, "a tuple of one"),
        (LINE + "  %r: f32[b] = relu(%x) {a=1, a=2}\n  return\n}", 2, "given twice"),
        (LINE + '  %r: f32[b] = relu(%x) {a="\\q"}\n  return\n}', 2, "not a string"),
        (LINE + "  %r: f32[b] = relu(%x) {a=1e}\n  return\n}", 2, "expected an attribute's value"),
        (LINE + '  %r: f32[b] = relu(%x) {a="x}\n  return\n}', 2, "'\"' has no meaning here"),
        (LINE + "  return %x,\n}", 3, "expected a value, found '}'"),
        (LINE + "  return %x", 2, "expected '}', found 'the end of the text'"),
        (EMPTY + "\nmore", 4, "text after the end"),
    ],
)
def test_mistakes_are_shown_in_place(text: str, line: int, message: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_program(text)
    shown = str(caught.value)
    assert shown.startswith(f"line {line}: ")
    assert message in shown
    _, source, caret = shown.split("\n")
    assert source[2:] == text.split("\n")[line - 1]
    assert caret.strip() == "^"


def test_the_caret_stands_under_the_place() -> None:
    with pytest.raises(ParseError) as caught:
        parse_program(LINE + "\t%r: f32[b] = relu(%z)\n return %r }")
    _, source, caret = str(caught.value).split("\n")
    assert source[caret.index("^") :].startswith("%z")
    assert caret.startswith("  \t")


def test_sizes_read_back() -> None:
    for dim in (Dim("b"), Dim("b", 2), Dim("b", -1, 3), Dim("s0", 1, -7)):
        text = f"program(%x: f32[{dim}]) {{ return %x }}"
        assert parse_program(text).inputs[0].type.shape == (dim,)
