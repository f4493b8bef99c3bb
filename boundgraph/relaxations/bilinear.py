"""Enclosures of products of two bounded factors, one by one or summed as in a matrix product."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval

Product = Callable[[Tensor, Tensor], Tensor]


def product_interval(a: Interval, b: Interval, product: Product) -> Interval:
    """Centre and radius of a sum of products, from five products of plain tensors.

    Per product, let p = sign(c)·min(|c|, r) be the part of a centre c that its radius r
    covers. Then centre c_a·c_b + p_a·p_b and radius |c_a|·r_b + r_a·(|c_b| + r_b) − |p_a|·|p_b|
    enclose a·b: the end of larger size is the corner (|c_a| + r_a)(|c_b| + r_b), and the
    other one is the smallest corner exactly unless both factors straddle 0; then it is
    below it by 2·(min(|c_a|·r_b, r_a·|c_b|) − |c_a·c_b|) ≥ 0. It is monotone under inclusion.

    Source: Rump, Fast interval matrix multiplication (Numerical Algorithms 61, 2012).

    Args:
        a, b: the factors.
        product: a bilinear map with non-negative coefficients, such as `torch.matmul`.
    """
    size_a, size_b = a.center.abs(), b.center.abs()
    covered_a, covered_b = torch.minimum(size_a, a.radius), torch.minimum(size_b, b.radius)
    center = product(a.center, b.center) + product(
        a.center.sign() * covered_a, b.center.sign() * covered_b
    )
    spread = product(size_a, b.radius) + product(a.radius, size_b + b.radius)
    return Interval.from_center_radius(
        center, (spread - product(covered_a, covered_b)).clamp(min=0.0)
    )
