"""Einstein sums as permutations, reshapes and matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from string import ascii_letters
from typing import Any

from boundgraph.ir.program import Value
from boundgraph.ir.types import Dim, Shape, numel
from boundgraph.ops._spec import Lowering

Matmul = Callable[[Lowering, Value, Value], Value]


def reshaped(b: Lowering, x: Value, shape: Shape) -> Value:
    return x if shape == b.shape(x) else b.emit("reshape", x, shape=shape)


def expand_to(b: Lowering, x: Value, shape: Shape) -> Value:
    """Broadcast a value to a shape of at least its rank."""
    own = b.shape(x)
    x = reshaped(b, x, (1,) * (len(shape) - len(own)) + own)
    return x if b.shape(x) == shape else b.emit("expand", x, shape=shape)


def parse(equation: str, ranks: Iterable[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, with `...` spelled out.

    Raises:
        ValueError: letters that do not fit the operands, or one twice in an operand.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    operands, ranks = left.split(","), list(ranks)
    if len(operands) != len(ranks):
        raise ValueError(f"{equation!r} names {len(operands)} operands, {len(ranks)} are given")
    spare = [letter for letter in reversed(ascii_letters) if letter not in equation]
    extra = [
        rank - len(letters.replace("...", "")) if "..." in letters else 0
        for letters, rank in zip(operands, ranks, strict=True)
    ]
    dots = "".join(spare[: max(extra)])
    spelled = [
        letters.replace("...", dots[len(dots) - count :] if count else "")
        for letters, count in zip(operands, extra, strict=True)
    ]
    if not arrow:
        once = sorted(c for c in set(left) - set(",.") if left.count(c) == 1)
        right = "..." * ("..." in left) + "".join(once)
    for letters, rank in zip(spelled, ranks, strict=True):
        if len(letters) != rank or len(set(letters)) != rank:
            raise ValueError(f"{equation!r} takes a diagonal or does not fit an operand")
    return spelled, right.replace("...", dots)


def contract(
    b: Lowering, letters: list[str], out: str, operands: list[Value], matmul: Any
) -> Value:
    """Contract operands from left to right.

    Args:
        letters: one text of letters for each operand, none twice in one text.
        out: letters of the result.
        operands: the factors.
        matmul: emits a matrix product.
    """
    value, have = operands[0], letters[0]
    for position, (factor, own) in enumerate(zip(operands[1:], letters[1:], strict=True), 1):
        later = "".join(letters[position + 1 :])
        wanted = "".join(c for c in dict.fromkeys(have + own) if c in out + later)
        value = _pair(b, (value, have), (factor, own), wanted, matmul)
        have = wanted
    value, have = _summed(b, value, have, out)
    dims = tuple(have.index(c) for c in out)
    return value if dims == tuple(range(len(dims))) else b.emit("permute", value, dims=dims)


def _summed(b: Lowering, value: Value, letters: str, keep: str) -> tuple[Value, str]:
    """Sum over the letters that nobody reads."""
    dims = tuple(i for i, c in enumerate(letters) if c not in keep)
    if dims:
        value = b.emit("sum", value, dims=dims, keepdim=False)
    return value, "".join(c for c in letters if c in keep)


def _pair(
    b: Lowering, left: tuple[Value, str], right: tuple[Value, str], out: str, matmul: Matmul
) -> Value:
    """One product of two operands, as a batched matrix product."""
    (x, own), (y, other) = left, right
    x, own = _summed(b, x, own, other + out)
    y, other = _summed(b, y, other, own + out)
    if any(isinstance(s, Dim) for s, c in zip(b.shape(y), other, strict=True) if c not in own):
        # A dynamic size must not be merged with others, and only the left factor's are not.
        (x, own), (y, other) = (y, other), (x, own)
    sizes: dict[str, Any] = {}
    for value, names in ((x, own), (y, other)):
        for size, c in zip(b.shape(value), names, strict=True):
            sizes[c] = size if sizes.get(c, 1) == 1 else sizes[c]
    batch = [c for c in own if c in other and c in out]
    inner = [c for c in own if c in other and c not in out]
    rows = [c for c in own if c not in other]
    columns = [c for c in other if c not in own]
    x = _arranged(b, x, own, [*batch, *rows, *inner], sizes, inner)
    y = _arranged(b, y, other, [*batch, *inner, *columns], sizes, inner)

    def shape(names: list[str], value: Value) -> Shape:
        return b.shape(value)[: len(names)]

    depth = numel(tuple(sizes[c] for c in inner))
    width = numel(tuple(sizes[c] for c in columns))
    spread = tuple(sizes[c] for c in rows) or (1,)
    x = reshaped(b, x, (*shape(batch, x), *spread, depth))
    y = reshaped(b, y, (*shape(batch, y), *(1,) * (len(spread) - 1), depth, width))
    product = matmul(b, x, y)
    axes = [*batch, *rows, *columns]
    product = reshaped(b, product, tuple(sizes[c] for c in axes))
    dims = tuple(axes.index(c) for c in out)
    return product if dims == tuple(range(len(dims))) else b.emit("permute", product, dims=dims)


def _arranged(
    b: Lowering, x: Value, letters: str, order: list[str], sizes: dict[str, Any], inner: list[str]
) -> Value:
    """Dimensions in order, those summed over at full size."""
    dims = tuple(letters.index(c) for c in order)
    if dims != tuple(range(len(dims))):
        x = b.emit("permute", x, dims=dims)
    shape = tuple(
        sizes[c] if c in inner else size for size, c in zip(b.shape(x), order, strict=True)
    )
    return expand_to(b, x, shape)
