"""Linear maps of the checker: how they act on rows of flattened values, and their transposes.

Part of the checker (see checker.py): numpy only. `terms` and `terms_back` count the products in
an element of `apply` and of `transpose`; a map that stands for one that is off by `relative` of
itself says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any  # numpy arrays of float64, or of Fraction objects


def _extended(x: Array) -> Array:
    """A last column of zeros, which index −1 (padding) reads."""
    return np.concatenate([x, np.zeros_like(x[..., :1])], axis=-1)


class Dense:
    """`x·Wᵀ` on the last dimension of rows of flattened values."""

    relative: Any = 0

    def __init__(self, weight: Array) -> None:
        self.weight = weight
        self.terms_back, self.terms = weight.shape

    def apply(self, x: Array) -> Array:
        return (x.reshape(len(x), -1, self.terms) @ self.weight.T).reshape(len(x), -1)

    def transpose(self, a: Array) -> Array:
        return (a.reshape(len(a), -1, self.terms_back) @ self.weight).reshape(len(a), -1)

    def absolute(self) -> Dense:
        return Dense(np.abs(self.weight))


class Gather:
    """`scale·Σₖ x[index[·, k]]`; index −1 reads 0. Moves, sums, averages and scales elements."""

    def __init__(self, index: Array, inputs: int, scale: Array = None, relative: Any = 0) -> None:
        self.index, self.inputs, self.scale, self.relative = index, inputs, scale, relative
        counts = np.bincount(index[index >= 0].ravel(), minlength=1)
        self.terms, self.terms_back = index.shape[1] + 1, int(counts.max()) + 1

    def apply(self, x: Array) -> Array:
        total = _extended(x)[:, self.index].sum(-1)
        return total if self.scale is None else total * self.scale

    def transpose(self, a: Array) -> Array:
        a = a if self.scale is None else a * self.scale
        out = np.repeat(np.zeros_like(a[:, :1]), self.inputs + 1, axis=1)
        for taps in self.index.T if self.terms_back > 2 else ():
            np.add.at(out, (slice(None), taps), a)  # type: ignore[arg-type]
        if self.terms_back <= 2:
            out[:, self.index] = a[:, :, None]
        return out[:, :-1]

    def absolute(self) -> Gather:
        scale = None if self.scale is None else np.abs(self.scale)
        return Gather(self.index, self.inputs, scale)


class Conv:
    """A convolution: weight `[groups, out, in, taps]`, index `[positions, taps]` into the plane.

    A transposed one is its transpose (`swapped`).
    """

    relative: Any = 0

    def __init__(self, weight: Array, index: Array, plane: int, swapped: bool) -> None:
        self.weight, self.index, self.plane, self.swapped = weight, index, plane, swapped
        _, outputs, inputs, taps = weight.shape
        ends = (inputs * taps, outputs * taps)
        self.terms, self.terms_back = reversed(ends) if swapped else ends

    def apply(self, x: Array) -> Array:
        return self._back(x) if self.swapped else self._forth(x)

    def transpose(self, a: Array) -> Array:
        return self._forth(a) if self.swapped else self._back(a)

    def absolute(self) -> Conv:
        return Conv(np.abs(self.weight), self.index, self.plane, self.swapped)

    def _forth(self, x: Array) -> Array:
        groups, _, inputs, taps = self.weight.shape
        x = _extended(x.reshape(len(x), groups, inputs, self.plane))
        parts = (self.weight[..., k] @ x[..., self.index[:, k]] for k in range(taps))
        return sum(parts).reshape(len(x), -1)  # type: ignore[union-attr]

    def _back(self, a: Array) -> Array:
        groups, outputs, inputs, taps = self.weight.shape
        a = a.reshape(len(a), groups, outputs, len(self.index))
        out = np.repeat(np.zeros_like(a[:, :, :1, :1]), inputs, axis=2)
        out = np.repeat(out, self.plane + 1, axis=3)
        for k in range(taps):  # positions of one tap are distinct, but for padding
            out[..., self.index[:, k]] += self.weight[..., k].swapaxes(-1, -2) @ a
        return out[..., :-1].reshape(len(a), -1)
