"""Linear relaxations of a function over an interval."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Parallel:
    """Two parallel lines: `slope·x + middle ± half_gap` encloses the function.

    Args:
        slope, middle, half_gap: tensors of the operand's shape; `half_gap >= 0`.
    """

    slope: Tensor
    middle: Tensor
    half_gap: Tensor

    @classmethod
    def between(cls, slope: Tensor, lower_offset: Tensor, upper_offset: Tensor) -> Parallel:
        """From the offsets of the lower and the upper line."""
        return cls(
            slope,
            lower_offset * 0.5 + upper_offset * 0.5,
            upper_offset * 0.5 - lower_offset * 0.5,
        )
