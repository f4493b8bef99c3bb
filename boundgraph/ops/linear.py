"""Linear layers and matrix products with a constant: `x·Wᵀ + b`."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.domains.balls import safe_norm
from boundgraph.domains.linear_form import LinearForm
from boundgraph.ir.program import Value
from boundgraph.ops._kinds import affine
from boundgraph.ops._spec import Lowering, OpCase, Rounding, lowers
from boundgraph.ops.matmul import matmul, scaled_sum


def _linear_part(x: Tensor, weight: Tensor, *_: Tensor) -> Tensor:
    return F.linear(x, weight)


def _magnitude(x: Tensor, weight: Tensor, *_: Tensor) -> Tensor:
    return F.linear(x, weight.abs())


def _offset(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor | None:
    return bias[0].abs() if bias else None


def _sample(rng: random.Random) -> OpCase:
    rows, columns = rng.randint(1, 5), rng.randint(1, 6)
    lead = tuple(rng.randint(1, 3) for _ in range(rng.randint(1, 2)))
    shapes: tuple[tuple[int, ...], ...] = ((*lead, columns), (rows, columns))
    return OpCase((*shapes, (rows,)) if rng.random() < 0.7 else shapes)


def _batch(batch_dims: Any, shapes: Any, out: Any, **_: Any) -> int | None:
    """Every dimension but the last (the contracted one) stays where it is."""
    dim = batch_dims[0]
    return dim if dim is not None and dim < len(out) - 1 else None


def _adjoint(coeff: Tensor, weight: Tensor, *_: Tensor, shapes: Any, target: Any) -> Tensor:
    return torch.matmul(coeff, weight)


def _constant(coeff: Tensor, weight: Tensor, *bias: Tensor, dims: tuple[int, ...]) -> Tensor | None:
    if not bias:
        return None
    rows = torch.matmul(coeff, bias[0])
    return rows.sum(dims[:-1]) if len(dims) > 1 else rows


def in_blocks(count: int, most: int = 64) -> int:
    """Blocks of so many terms for the fewest roundings, n/parts + parts; 1 below 32 terms."""
    divisors = [d for d in range(1, most + 1) if count % d == 0]
    return min(divisors, key=lambda d: count // d + d) if count >= 32 else 1


def linear_blocks(x: Tensor, weight: Tensor, *bias: Tensor, parts: int) -> Tensor:
    partial = torch.einsum(
        "...pk,opk->p...o", x.unflatten(-1, (parts, -1)), weight.unflatten(1, (parts, -1))
    )
    total = partial.sum(0)
    return total + bias[0] if bias else total


def _row_norm(weight: Tensor, *_: Tensor, q: float) -> Tensor:
    return safe_norm(weight, q, 1)


def _unit_rows(
    units: Tensor,
    weight: Tensor,
    *bias: Tensor,
    shapes: Any,
    target: Any,
    operand: int,
    carry: bool,
    sample_dims: tuple[int, ...],
) -> LinearForm | None:
    """Rows of the matrix, where a sample is one vector."""
    if sample_dims != (2,):
        return None
    offset = bias[0][units].unsqueeze(1) if carry and bias else None
    return LinearForm(weight[units].unsqueeze(1), offset)


linear = affine(
    "linear",
    F.linear,
    row_norm=_row_norm,
    blocks=linear_blocks,
    unit_rows=_unit_rows,
    adjoint=_adjoint,
    constant=_constant,
    linear=_linear_part,
    magnitude=_magnitude,
    leading=True,
    batch=_batch,
    rounding=Rounding(
        terms=lambda x, weight, *_, **__: weight.shape[1] + 1,
        offset=_offset,
        blocks=lambda x, weight, *_, **__: in_blocks(weight.shape[1]),
        transposed=lambda x, weight, *_, **__: weight.shape[0],
    ),
    sample=_sample,
    summary="x·Wᵀ + b on the last dimension",
)


@lowers(F.linear, torch.ops.aten.linear.default)
def _(b: Lowering, input: Value, weight: Value, bias: Value | None = None) -> Value:
    if b.depends(weight):
        flat = len(b.shape(weight)) == 1
        product = matmul(b, input, weight if flat else b.emit("permute", weight, dims=(1, 0)))
        return product if bias is None else b.emit("add", *b.broadcast(product, bias))
    return b.emit("linear", input, weight, *(() if bias is None else (bias,)))


@lowers(torch.ops.aten.addmm.default, torch.addmm, "Tensor.addmm")
def _(
    b: Lowering, input: Value, mat1: Value, mat2: Value, *, beta: float = 1, alpha: float = 1
) -> Value:
    plain = beta == 1 and alpha == 1 and not b.depends(mat2) and not b.depends(input)
    if plain and len(b.shape(input)) == 1:
        return b.emit("linear", mat1, b.emit("permute", mat2, dims=(1, 0)), input)
    # A matrix, or something that may carry a bound, is no bias: rules take one row of it.
    return scaled_sum(b, input, matmul(b, mat1, mat2), beta, alpha)


def _batched(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.matmul(matrix, x.unsqueeze(-1)).squeeze(-1)


def _batched_magnitude(x: Tensor, matrix: Tensor) -> Tensor:
    return _batched(x, matrix.abs())


def _sample_batched(rng: random.Random) -> OpCase:
    batch, rows, columns = rng.randint(1, 3), rng.randint(1, 4), rng.randint(1, 5)
    return OpCase(((batch, columns), (batch, rows, columns)))


batched_linear = affine(
    "batched_linear",
    _batched,
    adjoint=lambda coeff, matrix, *, shapes, target: torch.matmul(
        coeff.unsqueeze(-2), matrix
    ).squeeze(-2),
    magnitude=_batched_magnitude,
    leading=True,
    rounding=Rounding(terms=lambda x, matrix, **_: matrix.shape[-1] + 1),
    sample=_sample_batched,
    summary="a matrix of its own for each sample: M[i]·x[i]",
)
