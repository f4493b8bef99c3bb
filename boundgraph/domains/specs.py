"""Specifications: which linear functions of the output are bounded."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from boundgraph.errors import NonFiniteError, SpecError


@dataclass(frozen=True)
class Margin:
    """Rows `f_y − f_j` for every class j; row y is exactly 0.

    The labels are an argument of the compiled program. A sample is certified when every
    other row is above 0.

    Args:
        classes: number of output classes C; the output must be `[batch, C]`.
    """

    classes: int

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise SpecError(f"Margin needs at least 2 classes, got {self.classes}")

    def check_labels(self, labels: Tensor, batch: int) -> None:
        """Raise SpecError unless `labels` is an integer tensor `[batch]` within range."""
        if labels.dtype.is_floating_point or labels.dtype == torch.bool or labels.shape != (batch,):
            raise SpecError(
                f"labels must be an integer tensor of shape [{batch}], got "
                f"{labels.dtype}{list(labels.shape)}"
            )
        bad = (labels < 0) | (labels >= self.classes)
        if bool(bad.any()):
            value = int(labels[bad][0])
            raise SpecError(
                f"{int(bad.sum())} label(s) out of range for {self.classes} classes, e.g. {value}"
            )


@dataclass(frozen=True)
class CrossEntropy(Margin):
    """The negative cross-entropy at the label, one row; and the margins as plain intervals.

    For training: a backward method carries one row instead of one per class. The lower bound of
    the first output is minus an upper bound of the loss, before the correction that
    `training.MixedLoss` applies.
    """


@dataclass(frozen=True)
class OtherMargins(Margin):
    """Rows `f_y − f_j` for every class j but y, in the order of classes: C − 1 rows.

    What `Margin` says without its row of zeros, which a backward method would carry, too.
    """


@dataclass(frozen=True, eq=False)
class LinearSpec:
    """Rows `matrix · f + offset` of the flattened output.

    Args:
        matrix: `[rows, outputs]`, shared by the batch, or `[batch, rows, outputs]`.
        offset: `[rows]` or `[batch, rows]`; zero where absent.
    """

    matrix: Tensor
    offset: Tensor | None = field(default=None)

    def __post_init__(self) -> None:
        matrix = torch.as_tensor(self.matrix)
        object.__setattr__(self, "matrix", matrix)
        if matrix.dim() not in (2, 3):
            raise SpecError(f"LinearSpec.matrix must be 2-d or 3-d, got shape {list(matrix.shape)}")
        if not bool(torch.isfinite(matrix).all()):
            raise NonFiniteError("LinearSpec.matrix holds NaN or infinity")
        if self.offset is None:
            return
        offset = torch.as_tensor(self.offset, dtype=matrix.dtype)
        object.__setattr__(self, "offset", offset)
        if offset.shape not in (matrix.shape[:-1], matrix.shape[-2:-1]):
            raise SpecError(
                f"LinearSpec.offset of shape {list(offset.shape)} does not fit a matrix of shape "
                f"{list(matrix.shape)}"
            )
        if not bool(torch.isfinite(offset).all()):
            raise NonFiniteError("LinearSpec.offset holds NaN or infinity")

    def check_batch(self, batch: int) -> None:
        """Raise SpecError where there is a matrix for each sample, but not as many as samples."""
        if self.matrix.dim() == 3 and self.matrix.shape[0] != batch:
            raise SpecError(
                f"LinearSpec.matrix holds {self.matrix.shape[0]} matrices, one for each sample, "
                f"but the batch has {batch}"
            )


Spec = Margin | LinearSpec
