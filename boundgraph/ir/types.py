"""Types of the values in a program.

A shape is a tuple of `int` and `Dim`; a `Dim` is a linear expression `c·s + o` of one
symbol, which is how a dynamic batch size travels: `b`, `2*b`, `b+1`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

DTYPES = ("f16", "bf16", "f32", "f64", "i8", "u8", "i16", "i32", "i64", "bool", "c64", "c128")
FLOATS = ("f16", "bf16", "f32", "f64")


class Stage(StrEnum):
    """Where a program stands; each stage has verifier rules of its own."""

    CONCRETE = "concrete"
    BOUNDED = "bounded"


@dataclass(frozen=True)
class Dim:
    """The size `coeff * symbol + offset`; arithmetic yields a `Dim`, an int, or TypeError."""

    symbol: str
    coeff: int = 1
    offset: int = 0

    def __post_init__(self) -> None:
        if self.coeff == 0:
            raise ValueError("a Dim with coefficient 0 is an int")

    def __str__(self) -> str:
        text = self.symbol if self.coeff == 1 else f"{self.coeff}*{self.symbol}"
        if self.offset:
            text += f"{self.offset:+d}"
        return text

    def evaluate(self, sizes: dict[str, int]) -> int:
        return self.coeff * sizes[self.symbol] + self.offset

    def __add__(self, other: Size) -> Size:
        if isinstance(other, int):
            return Dim(self.symbol, self.coeff, self.offset + other)
        if isinstance(other, Dim) and other.symbol == self.symbol:
            return size(self.symbol, self.coeff + other.coeff, self.offset + other.offset)
        return NotImplemented

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return Dim(self.symbol, -self.coeff, -self.offset)

    def __sub__(self, other: Size) -> Size:
        return self + (-other)

    def __rsub__(self, other: Size) -> Size:
        return (-self) + other

    def __mul__(self, other: Size) -> Size:
        if isinstance(other, int):
            return size(self.symbol, self.coeff * other, self.offset * other)
        return NotImplemented

    __rmul__ = __mul__

    def __floordiv__(self, other: Size) -> Size:
        if isinstance(other, int) and self.coeff % other == 0 and self.offset % other == 0:
            return size(self.symbol, self.coeff // other, self.offset // other)
        if isinstance(other, Dim) and other == self:
            return 1
        return NotImplemented


Size = int | Dim
Shape = tuple[Size, ...]


def size(symbol: str, coeff: int, offset: int) -> Size:
    """`coeff * symbol + offset`, an int where the symbol cancels."""
    return Dim(symbol, coeff, offset) if coeff else offset


def numel(shape: Shape) -> Size:
    """Number of elements; a TypeError where two dynamic sizes multiply."""
    total: Size = 1
    for entry in shape:
        total = total * entry
    return total


def evaluate_shape(shape: Shape, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(entry.evaluate(sizes) if isinstance(entry, Dim) else entry for entry in shape)


@dataclass(frozen=True)
class TensorType:
    """A plain tensor."""

    dtype: str
    shape: Shape

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; known: {', '.join(DTYPES)}")

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS


@dataclass(frozen=True)
class IntervalType(TensorType):
    """Element-wise lower and upper bounds of a tensor."""

    def __str__(self) -> str:
        return f"interval {super().__str__()}"


@dataclass(frozen=True)
class SymbolicType(TensorType):
    """A centre plus generators, one block per source of uncertainty (a zonotope).

    Blocks are named after the value that introduced them; two values that share a
    block name share its symbols, which is how correlation survives a branch.
    """

    blocks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"symbolic {super().__str__()} over ({', '.join(self.blocks)})"


@dataclass(frozen=True)
class FormType(TensorType):
    """A linear lower bound in a value: coefficients `[rows, *value shape]` and an offset."""

    def __str__(self) -> str:
        return f"form {super().__str__()}"


def plain(type_: TensorType) -> TensorType:
    """The tensor type that a bound type bounds."""
    return TensorType(type_.dtype, type_.shape)
