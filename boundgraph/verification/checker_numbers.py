"""Numbers of the checker: float64 with proved error bounds, or exact rationals.

Part of the checker (see checker.py): numpy and the standard library only. Unit roundoff
U = 2⁻⁵³; in rationals U = ETA = 0.

1. A sum of n products, in any order, with or without fused multiply-add, errs by at most
   γ(n)·Σ|aᵢbᵢ| + n·ETA, γ(n) = nU/(1 − nU) (Higham, Accuracy and Stability, 3.1); ETA is the
   smallest positive number. `above` inverts this for sums of non-negative products.
2. One operation errs by half a unit in the last place: `up` and `down` step past that.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

U, ETA = 2.0**-53, 2.0**-1074
Array = Any  # numpy arrays of float64, or of Fraction objects


class Refused(Exception):  # noqa: N818
    """The certificate does not prove its claim, or the checker cannot tell."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise Refused(message)


class Arithmetic:
    """float64 with error bounds, or exact rationals in object arrays."""

    def __init__(self, exact: bool) -> None:
        self.exact = exact
        self.u: Any = Fraction(0) if exact else U
        self.eta: Any = Fraction(0) if exact else ETA

    def array(self, values: Any) -> Array:
        """The same numbers; whatever cannot be kept exactly is refused."""
        given = np.asarray(values)
        if not self.exact:
            floats = given.astype(np.float64)
            require(given.dtype.kind != "i" or bool(np.all(np.abs(given) < 2**53)), "large integer")
            return floats
        made = np.empty(given.size, dtype=object)
        made[:] = [Fraction(v) for v in given.ravel().tolist()]
        return made.reshape(given.shape)

    def checked(self, x: Array, what: str) -> Array:
        """Finite, and rational where rationals are promised: no float slipped in."""
        if not self.exact:
            require(bool(np.isfinite(x).all()), f"{what} overflow")
            return x
        require(all(isinstance(v, int | Fraction) for v in x.ravel()), f"{what} are not rational")
        made = np.empty(x.shape, dtype=object)
        made.ravel()[:] = [Fraction(v) for v in x.ravel()]
        return made

    def zeros(self, shape: Any) -> Array:
        return self.array(np.zeros(shape))

    def gamma(self, terms: int) -> Any:
        return self.u * (terms + 2) * (1 if self.exact else 1.01)

    def up(self, x: Array) -> Array:
        return x if self.exact else self._stepped(x, np.inf)

    def down(self, x: Array) -> Array:
        return x if self.exact else self._stepped(x, -np.inf)

    @staticmethod
    def _stepped(x: Array, towards: float) -> Array:
        """A step from infinity would give a number: a sum that overflowed on its way."""
        return np.where(np.isfinite(x), np.nextafter(x, towards), np.nan)

    def above(self, total: Array, terms: int) -> Array:
        """At least the exact sum, from a computed sum of non-negative products (1.)."""
        return self.up(self.up(total + 4 * terms * self.eta) * (1 + 2 * self.gamma(terms)))

    def sum_below(self, products: Array) -> Array:
        """At most the exact row sums of products that were each rounded once."""
        n = products.shape[-1] + 1
        slack = self.up(self.above(np.abs(products).sum(-1), n) * (2 * self.gamma(n)))
        return self.down(products.sum(-1) - self.up(slack + 4 * n * self.eta))

    def sum_above(self, weights: Array, vector: Array) -> Array:
        """At least `|weights|·vector`, for a vector of non-negative numbers."""
        return self.above(np.abs(weights) @ vector, len(vector))

    def dual_norm(self, rows: Array, norm: int) -> Array:
        """At least the largest `rows·v` over the unit ball of the 1- or 2-norm."""
        if norm == 1:
            return np.abs(rows).max(-1)
        total = self.above((rows * rows).sum(-1), rows.shape[-1])
        if not self.exact:
            return self.up(np.sqrt(total))
        roots = [Fraction(math.isqrt(v.numerator * v.denominator << 200) + 1, v.denominator << 100)
                 for v in total]  # fmt: skip
        return np.array(roots, dtype=object)

    def quotient(self, numerator: Array, denominator: Array) -> tuple[Array, Any]:
        """`numerator / denominator` and its relative error."""
        require(bool(np.all(denominator != 0)), "division by 0")
        found = np.asarray(numerator / denominator)
        normal = (np.abs(found) > 2.0**-900) | (numerator == 0)
        require(bool(np.all(normal)), "a quotient underflows")
        return found, 4 * self.u

    def sqrt(self, x: Array) -> tuple[Array, Any]:
        """Square roots and their relative error, one rounding of x before included."""
        require(bool(np.all(x > 2.0**-900)), "the square root of a number that is not positive")
        if not self.exact:
            return np.sqrt(x), 2 * U
        roots = [
            Fraction(math.isqrt(v.numerator * v.denominator << 200), v.denominator << 100)
            for v in x.ravel()
        ]
        return np.array(roots, dtype=object).reshape(x.shape), Fraction(1, 2**60)


FLOATS = Arithmetic(exact=False)


def _tail(x: Array) -> tuple[Array, Array]:
    """`1 / (1 + exp(x))` for x >= 0, enclosed.

    exp(x) is exp(x/128) squared seven times. The Taylor sum of degree 16 at x/128 <= 0.32 has
    positive terms, three roundings for each, and a remainder below 1e-23; a squaring doubles
    the relative error: (48 + 1)·128·U + 128·U < 2⁻⁴⁰. With two more operations it stays below
    2⁻³⁷. Beyond 40 the value lies between 0 and the value at 40.
    """
    y = np.minimum(x, 40.0) / 128.0
    power = np.ones_like(y)
    for k in range(16, 0, -1):
        power = 1.0 + y / k * power
    for _ in range(7):
        power = power * power
    tail = 1.0 / (1.0 + power)
    return np.where(x > 40.0, 0.0, tail * (1.0 - 2.0**-36)), tail * (1.0 + 2.0**-36)


def s_shaped(name: str, x: Array) -> tuple[Array, Array]:
    """sigmoid or tanh in float64, enclosed: `σ(x) = 1 − tail(x)`, `tanh x = 1 − 2·tail(2x)`."""
    factor = 1.0 if name == "sigmoid" else 2.0
    low, high = (factor * t for t in _tail(factor * np.abs(x)))
    right = np.nextafter(1.0 - high, -np.inf), np.nextafter(1.0 - low, np.inf)
    left = (low, high) if name == "sigmoid" else (-right[1], -right[0])
    return np.where(x >= 0, right[0], left[0]), np.where(x >= 0, right[1], left[1])


def steepness(name: str, near: Array, far: Array) -> tuple[Array, Array]:
    """The least and largest derivative where |x| runs from near to far; it falls with |x|."""
    (_, most), (least, _) = s_shaped(name, far), s_shaped(name, near)
    if name == "sigmoid":  # p(1 − p), falling for p >= 1/2
        least = np.maximum(least, 0.5)
        low, high = most * np.nextafter(1.0 - most, -np.inf), least * np.nextafter(1 - least, 2.0)
    else:
        least = np.maximum(least, 0.0)
        low = 1.0 - np.nextafter(most * most, np.inf)
        high = 1.0 - np.nextafter(least * least, -np.inf)
    return np.nextafter(low, -np.inf), np.nextafter(high, np.inf)
