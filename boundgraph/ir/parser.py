"""Read the text that the printer writes: a tokenizer and a recursive descent.

    program = "program" "(" [input {"," input}] ")" ["stage" "=" word] "{"
              {"param" value ":" type} {node} "return" [value {"," value}] "}"
    node    = value ":" type "=" word "(" [value {"," value}] ")" ["{" attr {"," attr} "}"]
    type    = ["interval" | "symbolic" | "form"] word "[" sizes "]" ["over" "(" words ")"]
    attr    = word "=" (word | string | tuple)

White space and comments (`# ...`) separate tokens and mean nothing else.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from boundgraph.errors import ParseError
from boundgraph.ir.program import Attrs, Node, Program, Value
from boundgraph.ir.types import Dim, FormType, IntervalType, Size, Stage, SymbolicType, TensorType

T = TypeVar("T")

# Names, numbers and sizes (`2*b+1`, `1e-05`) are all one kind of token, a word, and told
# apart where they stand: a block may be called `1`, and a name may contain dots.
_TOKEN = re.compile(
    r"""(?P<skip>\s+|\#[^\n]*)
      | (?P<value>[%@][A-Za-z0-9_.-]+)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<word>[A-Za-z0-9_.+*-]+)
      | (?P<mark>[(){}\[\]=:,])""",
    re.VERBOSE,
)
_NAME = re.compile(r"[A-Za-z0-9_.]+")
_INT = re.compile(r"-?[0-9]+")
_FLOAT = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?")
_DIM = re.compile(r"(?:(?P<coeff>-?[0-9]+)\*)?(?P<symbol>[A-Za-z_]\w*)(?P<offset>[+-][0-9]+)?")
_WORDS: dict[str, bool | float | None] = {
    "True": True,
    "False": False,
    "None": None,
    "inf": math.inf,
    "-inf": -math.inf,
    "nan": math.nan,
}


def parse_program(text: str) -> Program:
    """The program that a text describes; not verified.

    Args:
        text: one program, as `print_program` writes it, possibly indented or commented.

    Raises:
        ParseError: with the line number, the line and a caret under the place.
    """
    return _Parser(text).program()


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int


def _tokens(text: str) -> list[_Token]:
    found, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _error(text, at, f"{text[at]!r} has no meaning here")
        if match.lastgroup != "skip":
            found.append(_Token(match.lastgroup or "", match.group(), at))
        at = match.end()
    end = len(text.rstrip())
    return [*found, _Token("end", "the end of the text", end)]


def _error(text: str, at: int, message: str) -> ParseError:
    start = text.rfind("\n", 0, at) + 1
    line = text[start:].split("\n", 1)[0]
    number = text.count("\n", 0, at) + 1
    # Tabs stay tabs, so that the caret stands under its place however wide they are.
    margin = re.sub(r"\S", " ", line[: at - start])
    return ParseError(f"line {number}: {message}\n  {line}\n  {margin}^")


class _Parser:
    """One pass over the tokens; values are resolved as they are read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._next = 0
        self._values: dict[str, Value] = {}

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _error(self, message: str, token: _Token | None = None) -> ParseError:
        return _error(self._text, (token or self._token).at, message)

    def _take(self) -> _Token:
        token = self._token
        self._next += token.kind != "end"
        return token

    def _accept(self, text: str) -> bool:
        if self._token.text != text or self._token.kind not in ("mark", "word"):
            return False
        self._next += 1
        return True

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            raise self._error(f"expected {text!r}, found {self._token.text!r}")

    def _word(self, what: str, pattern: re.Pattern[str] = _NAME) -> str:
        token = self._token
        if token.kind != "word" or not pattern.fullmatch(token.text):
            raise self._error(f"expected {what}, found {token.text!r}")
        return self._take().text

    def _list(self, close: str, item: Callable[[], T]) -> list[T]:
        """Items up to and including a closing mark."""
        items: list[T] = []
        while not self._accept(close):
            if items:
                self._expect(",")
            items.append(item())
        return items

    def program(self) -> Program:
        self._expect("program")
        self._expect("(")
        inputs = self._list(")", self._input)
        stage = self._stage()
        self._expect("{")
        params: list[Value] = []
        nodes: list[Node] = []
        outputs: list[Value] = []
        while self._accept("param"):
            params.append(self._define("@"))
        while self._token.kind == "value":
            nodes.append(self._node())
        self._expect("return")
        while self._token.kind == "value" or (outputs and self._token.text == ","):
            if outputs:
                self._expect(",")
            outputs.append(self._use())
        self._expect("}")
        if self._token.kind != "end":
            raise self._error("text after the end of the program")
        return Program(tuple(inputs), tuple(params), tuple(nodes), tuple(outputs), stage)

    def _stage(self) -> Stage:
        if not self._accept("stage"):
            return Stage.CONCRETE
        self._expect("=")
        token = self._token
        word = self._word("a stage")
        if word not in list(Stage):
            raise self._error(f"unknown stage {word!r}; known: {', '.join(Stage)}", token)
        return Stage(word)

    def _input(self) -> Value:
        return self._define("%")

    def _define(self, sigil: str) -> Value:
        token = self._new_name(sigil)
        value = Value(token.text[1:], self._type(), param=sigil == "@")
        self._values[token.text] = value
        return value

    def _new_name(self, sigil: str) -> _Token:
        token = self._take()
        if token.kind != "value" or token.text[0] != sigil:
            raise self._error(f"expected a name with {sigil!r}, found {token.text!r}", token)
        if token.text in self._values:
            raise self._error(f"{token.text} is defined a second time", token)
        self._expect(":")
        return token

    def _use(self) -> Value:
        token = self._take()
        if token.kind != "value":
            raise self._error(f"expected a value, found {token.text!r}", token)
        if token.text not in self._values:
            raise self._error(f"{token.text} is not defined above", token)
        return self._values[token.text]

    def _node(self) -> Node:
        token = self._new_name("%")
        type_ = self._type()
        self._expect("=")
        op = self._word("an op")
        self._expect("(")
        inputs = self._list(")", self._use)
        attrs = self._list("}", self._attr) if self._accept("{") else []
        # Defined last: a node cannot read its own result.
        result = self._values[token.text] = Value(token.text[1:], type_)
        names = [name for name, _ in attrs]
        if len(set(names)) < len(names):
            raise self._error(f"an attribute of {token.text} is given twice", token)
        return Node(result, op, tuple(inputs), Attrs(attrs))

    def _type(self) -> TensorType:
        domains = ("interval", "symbolic", "form")
        domain = next((name for name in domains if self._accept(name)), None)
        if domain and self._token.text in domains:
            message = f"a type is one of {', '.join(domains)}, not both"
            raise self._error(message, self._token)
        token = self._token
        dtype = self._word("a dtype")
        self._expect("[")
        shape = tuple(self._list("]", self._size))
        try:
            plain = TensorType(dtype, shape)
        except ValueError as error:
            raise self._error(str(error), token) from None
        if domain == "interval":
            return IntervalType(dtype, shape)
        if domain == "form":
            return FormType(dtype, shape)
        if domain == "symbolic":
            self._expect("over")
            self._expect("(")
            blocks = self._list(")", lambda: self._word("a block"))
            return SymbolicType(dtype, shape, tuple(blocks))
        return plain

    def _size(self) -> Size:
        token = self._take()
        if token.kind == "word":
            if _INT.fullmatch(token.text):
                return int(token.text)
            dim = self._dim(token)
            if dim is not None:
                return dim
        raise self._error(f"expected a size, found {token.text!r}", token)

    def _dim(self, token: _Token) -> Dim | None:
        match = _DIM.fullmatch(token.text)
        if match is None:
            return None
        try:
            return Dim(match["symbol"], int(match["coeff"] or 1), int(match["offset"] or 0))
        except ValueError as error:
            raise self._error(str(error), token) from None

    def _attr(self) -> tuple[str, Any]:
        name = self._word("an attribute's name")
        self._expect("=")
        return name, self._attr_value()

    def _attr_value(self) -> Any:
        if self._accept("("):
            return self._tuple()
        token = self._take()
        if token.kind == "string":
            return self._string(token)
        if token.kind == "word":
            if token.text in _WORDS:
                return _WORDS[token.text]
            if _INT.fullmatch(token.text):
                return int(token.text)
            if _FLOAT.fullmatch(token.text):
                return float(token.text)
            dim = self._dim(token)
            if dim is not None:
                return dim
        raise self._error(f"expected an attribute's value, found {token.text!r}", token)

    def _tuple(self) -> tuple[Any, ...]:
        items: list[Any] = []
        while not self._accept(")"):
            items.append(self._attr_value())
            if not self._accept(","):
                if len(items) == 1:
                    raise self._error("a tuple of one is written with a comma: (1,)")
                self._expect(")")
                break
        return tuple(items)

    def _string(self, token: _Token) -> str:
        try:
            return str(json.loads(token.text))
        except ValueError as error:
            raise self._error(f"not a string: {error}", token) from None
