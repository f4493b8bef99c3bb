"""Random programs that are legal in form: names, types, blocks, attributes of every kind."""

from __future__ import annotations

import math
import string

import pytest
from hypothesis import strategies as st

from boundgraph.ir.program import Program, ProgramBuilder, Value
from boundgraph.ir.types import (
    DTYPES,
    Dim,
    IntervalType,
    Stage,
    SymbolicType,
    TensorType,
)
from boundgraph.source import SourceSpan

NAMES = st.text(string.ascii_letters + string.digits + "_.", min_size=1, max_size=8)
SYMBOLS = st.sampled_from(["b", "s0", "Batch_2", "e5", "infinite", "param", "over"])
DIMS = st.builds(Dim, SYMBOLS, st.integers(-9, 9).filter(bool), st.integers(-99, 99))
SIZES = st.integers(0, 4096) | DIMS
SHAPES = st.lists(SIZES, max_size=4).map(tuple)
FLOATS = st.floats() | st.sampled_from([math.inf, -math.inf, math.nan, -0.0, 1e-05, 1e16])
ATTRS = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | st.text(max_size=6) | DIMS,
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)
KEYS = st.sampled_from(["stride", "dim", "eps", "return_", "_x9", "inf"])


@st.composite
def types(draw: st.DrawFn, stage: Stage) -> TensorType:
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(SHAPES)
    kinds = ["tensor"] if stage == Stage.CONCRETE else ["tensor", "interval", "symbolic"]
    match draw(st.sampled_from(kinds)):
        case "interval":
            return IntervalType(dtype, shape)
        case "symbolic":
            return SymbolicType(dtype, shape, tuple(draw(st.lists(NAMES, max_size=3, unique=True))))
        case _:
            return TensorType(dtype, shape)


@st.composite
def random_programs(draw: st.DrawFn) -> Program:
    stage = draw(st.sampled_from(Stage))
    builder = ProgramBuilder(stage)
    values: list[Value] = []
    for _ in range(draw(st.integers(0, 3))):
        values.append(builder.input(draw(NAMES), draw(types(stage))))
    for _ in range(draw(st.integers(0, 3))):
        path = draw(NAMES)
        known = [value for value in values if value.param and value.name == path]
        values += known or [builder.param(path, draw(types(Stage.CONCRETE)))]
    for index in range(draw(st.integers(0, 6))):
        inputs = draw(st.lists(st.sampled_from(values), max_size=3)) if values else []
        attrs = draw(st.dictionaries(KEYS, ATTRS, max_size=3))
        span = draw(st.sampled_from([None, SourceSpan("model.py", index, "x = f(x)", "net.0")]))
        values.append(
            builder.add(draw(NAMES), inputs, draw(types(stage)), attrs, name=draw(NAMES), span=span)
        )
    outputs = draw(st.lists(st.sampled_from(values), max_size=3)) if values else []
    return builder.build(outputs)


@pytest.fixture(scope="session")
def programs() -> st.SearchStrategy[Program]:
    return random_programs()
