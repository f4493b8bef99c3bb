"""Any torch function as an op: its arguments survive as text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from boundgraph.ir.parser import parse_program
from boundgraph.ir.program import ProgramBuilder, Value
from boundgraph.ir.types import Dim, TensorType
from boundgraph.ops import get
from boundgraph.ops._infer import fit, infer_type
from boundgraph.ops.constant import EncodingError, decode, encode, resolve

X = Value("x", TensorType("f32", (Dim("b"), 4)))


@pytest.mark.parametrize(
    "argument",
    [
        3,
        -0.5,
        True,
        None,
        "mean",
        "#0",
        "##",
        torch.float64,
        torch.device("cpu"),
        slice(None, 3),
        Ellipsis,
        [1, 2],
        (1, [2, (3,)]),
        torch.contiguous_format,
        torch.strided,
        (),
    ],
)
def test_arguments_survive(argument: Any) -> None:
    operands: list[Value] = []
    text = encode((argument, [X]), operands)
    builder = ProgramBuilder()
    x = builder.input("x", X.type)
    builder.add("call", [x], X.type, {"target": "Tensor.abs", "args": text})
    parsed = parse_program(str(builder.build(())))
    tensor = torch.zeros(1)
    found, (operand,) = decode(parsed.nodes[0].attrs["args"], (tensor,))
    assert type(found) is type(argument) and found == argument
    assert operand is tensor and operands == [X]


def test_functions_are_found_by_name() -> None:
    x = torch.rand(2, 3)
    assert torch.equal(resolve("Tensor.T")(x), x.T)
    assert torch.equal(resolve("Tensor.cumsum")(x, 1), x.cumsum(1))
    assert torch.equal(resolve("aten.cumsum.default")(x, 1), x.cumsum(1))
    assert resolve("torch.nn.functional.gelu") is torch.nn.functional.gelu


@pytest.mark.parametrize(
    "name",
    [
        "torch",
        "torch.nothing",
        "Tensor.nothing",
        "os.remove",
        "builtins.eval",
        "torch.load",
        "torch.from_file",
        "aten.from_file.default",
        "torch.serialization.os.system",
        "operator.sys",
    ],
)
def test_only_functions_of_tensors_are_found(name: str) -> None:
    with pytest.raises(EncodingError):
        resolve(name)


def test_objects_are_refused() -> None:
    with pytest.raises(EncodingError, match="Generator"):
        encode(torch.Generator(), [])


def test_types_follow_the_function() -> None:
    spec = get("call")
    assert spec is not None
    attrs = {"target": "torch.max", "args": ("#0", 1), "kwargs": (), "output": (1,)}
    assert infer_type(spec.concrete, [X.type], attrs) == TensorType("i64", (Dim("b"),))
    capped = {
        "target": "operator.getitem",
        "args": ("#0", ("#slice", None, 100, None)),
        "kwargs": (),
        "output": (),
    }
    with pytest.raises(TypeError, match="linear"):
        infer_type(spec.concrete, [X.type], capped)


def test_a_size_is_an_int_or_a_line() -> None:
    assert fit("b", [3, 3, 3]) == 3
    assert fit("b", [11, 15, 200_007]) == Dim("b", 2, 1)
    with pytest.raises(TypeError, match="linear"):
        fit("b", [25, 49, 100_003**2])
