"""Properties of outputs: linear constraints under `All` and `Any`, and their normal form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from boundgraph.domains.specs import LinearSpec, Margin
from boundgraph.errors import NonFiniteError, SpecError

MAX_CLAUSES = 10_000


@dataclass(frozen=True, eq=False)
class Constraint:
    """`coefficients · f + offset > 0` for the flattened output `f` of one sample.

    The inequality is strict: an input where the left side is exactly 0 breaks it. For
    "`>= 0` up to t", add t to the offset.

    Args:
        coefficients: one per output, or a mapping from output index to coefficient.
        offset: a number.

    Raises:
        SpecError: no coefficients, or not a vector.
        NonFiniteError: NaN or infinity.

    Example:
        >>> Constraint({0: 1.0, 2: -1.0}).text
        'f[0] - f[2] > 0'
    """

    coefficients: Sequence[float] | Tensor | Mapping[int, float]
    offset: float = 0.0
    terms: Mapping[int, float] = field(init=False, repr=False)
    width: int | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        given = self.coefficients
        if isinstance(given, Mapping):
            width, terms = None, {int(i): float(value) for i, value in given.items()}
        else:
            vector = torch.as_tensor(given, dtype=torch.float64).detach()
            if vector.dim() != 1:
                raise SpecError(
                    f"Constraint.coefficients must be a vector, got shape {list(vector.shape)}"
                )
            width, terms = len(vector), {i: c for i, c in enumerate(vector.tolist()) if c}
            if not width:
                raise SpecError("Constraint.coefficients is empty")
        if any(index < 0 for index in terms):
            raise SpecError(
                f"Constraint.coefficients names output {min(terms)}; indices start at 0"
            )
        object.__setattr__(self, "offset", float(self.offset))
        if not all(map(math.isfinite, (*terms.values(), self.offset))):
            raise NonFiniteError("Constraint holds NaN or infinity")
        object.__setattr__(self, "terms", terms)
        object.__setattr__(self, "width", width)

    @property
    def text(self) -> str:
        """The inequality, as read on paper."""
        return row_text(self.terms, self.offset)


@dataclass(frozen=True, eq=False, init=False)
class All:
    """Every member holds at every input of the region."""

    members: tuple[Property, ...]

    def __init__(self, *members: Property) -> None:
        object.__setattr__(self, "members", _checked("All", members))


@dataclass(frozen=True, eq=False, init=False)
class Any:
    """At every input of the region some member holds, not necessarily the same one."""

    members: tuple[Property, ...]

    def __init__(self, *members: Property) -> None:
        object.__setattr__(self, "members", _checked("Any", members))


Property = Constraint | All | Any
AnySpec = Margin | LinearSpec | Constraint | All | Any


@dataclass(frozen=True, eq=False)
class Clauses:
    """A property of one sample in conjunctive normal form.

    It holds at an input when every clause has a row above 0 there.

    Args:
        matrix: `[rows, outputs]`, in the dtype of the output.
        offset: `[rows]`.
        clauses: indices of the rows of each clause.
    """

    matrix: Tensor
    offset: Tensor
    clauses: tuple[tuple[int, ...], ...]

    def row(self, index: int) -> str:
        """A row as an inequality."""
        values = self.matrix[index]
        terms = {int(i): float(values[i]) for i in values.nonzero().flatten()}
        return row_text(terms, float(self.offset[index]))

    def clause(self, index: int) -> str:
        return " or ".join(self.row(row) for row in self.clauses[index])

    def rows(self, output: Tensor) -> Tensor:
        """`[rows]` float64: the left sides at a concrete output (of one sample)."""
        flat = output.detach().reshape(-1).double()
        matrix, offset = self.matrix.double(), self.offset.double()
        if bool(torch.isfinite(flat).all()):
            return matrix @ flat + offset
        # An output that a row leaves out must not reach it as 0 · inf.
        return torch.where(matrix == 0, 0.0, matrix * flat).sum(1) + offset

    def scale(self, output: Tensor) -> Tensor:
        """`[rows]`: the size of what each row adds up; its rounding is relative to this."""
        flat = torch.nan_to_num(output.detach().reshape(-1).double())
        return self.matrix.double().abs() @ flat.abs() + self.offset.double().abs()

    def worst(self, rows: Tensor) -> tuple[int, float]:
        """The clause nearest to being broken (NaN first), and the largest of its rows."""
        highest = [float(rows[list(clause)].max()) for clause in self.clauses]
        index = min(
            range(len(highest)),
            key=lambda i: -math.inf if math.isnan(highest[i]) else highest[i],
        )
        for i, value in enumerate(highest):
            if math.isnan(value):
                return i, value
        return index, highest[index]


def row_text(terms: Mapping[int, float], offset: float) -> str:
    """`2·f[0] - f[3] + 0.5 > 0`."""
    # What counts for it comes first, as a margin is read.
    ordered = sorted(terms.items(), key=lambda item: (item[1] < 0, item[0]))
    parts = [(value, f"f[{index}]") for index, value in ordered if value]
    text = ""
    for value, name in parts:
        size = "" if abs(value) == 1 else f"{abs(value):g}·"
        sign = ("-" if value < 0 else "") if not text else (" - " if value < 0 else " + ")
        text += f"{sign}{size}{name}"
    if offset or not text:
        sign = ("-" if offset < 0 else "") if not text else (" - " if offset < 0 else " + ")
        text += f"{sign}{abs(offset):g}"
    return f"{text} > 0"


def normalize(spec: AnySpec, output: Tensor, label: int | None = None, sample: int = 0) -> Clauses:
    """The clauses of one sample.

    Args:
        spec: any specification.
        output: of the model on that sample, `[1, ...]`; for size, dtype and device.
        label: of that sample, for a `Margin`.
        sample: its position, for a `LinearSpec` with a matrix per sample.

    Raises:
        SpecError: the spec does not fit the output, or has too many clauses.
    """
    size = output[0].numel()
    if isinstance(spec, Margin):
        return _from_margin(spec, output, size, label)
    if isinstance(spec, LinearSpec):
        return _from_matrix(spec, output, size, sample)
    found: dict[int, int] = {}
    rows: list[Constraint] = []

    def position(constraint: Constraint) -> int:
        if id(constraint) not in found:
            found[id(constraint)] = len(rows)
            rows.append(constraint)
        return found[id(constraint)]

    clauses = tuple(tuple(sorted({position(c) for c in clause})) for clause in _clauses(spec))
    matrix = torch.zeros(len(rows), size, dtype=torch.float64)
    for index, constraint in enumerate(rows):
        width = constraint.width if constraint.width is not None else size
        if width != size or any(i >= size for i in constraint.terms):
            raise SpecError(
                f"{constraint.text!r} has coefficients for "
                f"{max(constraint.width or 0, 1 + max(constraint.terms, default=0))} outputs, "
                f"the model has {size} outputs a sample"
            )
        for i, value in constraint.terms.items():
            matrix[index, i] = value
    offset = torch.tensor([c.offset for c in rows], dtype=torch.float64)
    return Clauses(*_like(output, matrix, offset), tuple(dict.fromkeys(clauses)))


def _from_margin(spec: Margin, output: Tensor, size: int, label: int | None) -> Clauses:
    if output.dim() != 2 or size != spec.classes:
        raise SpecError(
            f"Margin(classes={spec.classes}) needs an output [batch, {spec.classes}], the model "
            f"returns {list(output.shape)}"
        )
    if label is None:
        raise SpecError("spec=Margin(classes) needs labels=, one integer per sample")
    others = [j for j in range(size) if j != label]
    identity = torch.eye(size, dtype=torch.float64)
    matrix, offset = identity[label] - identity[others], torch.zeros(len(others))
    return Clauses(*_like(output, matrix, offset), tuple((row,) for row in range(len(others))))


def _from_matrix(spec: LinearSpec, output: Tensor, size: int, sample: int) -> Clauses:
    matrix, offset = spec.matrix, spec.offset
    if matrix.dim() == 3:
        if sample >= len(matrix):
            raise SpecError(f"LinearSpec.matrix is for {len(matrix)} samples, the region has more")
        matrix = matrix[sample]
    if offset is None:
        offset = matrix.new_zeros(len(matrix))
    elif offset.dim() == 2:
        offset = offset[sample]
    if not len(matrix):
        raise SpecError("LinearSpec has no rows: there is nothing to verify")
    if matrix.shape[1] != size:
        raise SpecError(
            f"LinearSpec has {matrix.shape[1]} columns, the model has {size} outputs a sample"
        )
    return Clauses(*_like(output, matrix, offset), tuple((row,) for row in range(len(matrix))))


def _like(output: Tensor, matrix: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    matrix, offset = matrix.detach().to(output), offset.detach().to(output)
    if not bool(torch.isfinite(matrix).all() & torch.isfinite(offset).all()):
        raise NonFiniteError(f"a coefficient of the spec overflows {output.dtype}")
    return matrix, offset


def _clauses(spec: Property) -> list[tuple[Constraint, ...]]:
    """Conjunctive normal form; `Any` over `All` multiplies out."""
    if isinstance(spec, Constraint):
        return [(spec,)]
    parts = [_clauses(member) for member in spec.members]
    if isinstance(spec, All):
        found = [clause for part in parts for clause in part]
    else:
        if math.prod(map(len, parts)) > MAX_CLAUSES:
            raise _too_many()
        found = [
            tuple(row for clause in chosen for row in clause)
            for chosen in itertools.product(*parts)
        ]
    if len(found) > MAX_CLAUSES:
        raise _too_many()
    return found


def _too_many() -> SpecError:
    return SpecError(
        f"the spec has more than {MAX_CLAUSES:,} clauses in conjunctive normal form (an Any of "
        "large Alls multiplies out); verify its parts one by one"
    )


def _checked(name: str, members: tuple[Property, ...]) -> tuple[Property, ...]:
    if not members:
        raise SpecError(f"{name}() needs at least one member")
    for member in members:
        if not isinstance(member, Constraint | All | Any):
            raise SpecError(
                f"{name} takes Constraint, All and Any, got {type(member).__name__}; write a "
                "margin as constraints"
            )
    return members
