"""Enclosures of products of two bounded factors, one by one or summed as in a matrix product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Plane:
    """`left·x + right·y + offset`, on one side of x·y over a box."""

    left: Tensor
    right: Tensor
    offset: Tensor


def flattest(x: Interval, y: Interval, *, upper: bool, parallel: bool = False) -> Plane:
    """The plane of McCormick below (or above) x·y that varies least over the box.

    Below are yl·x + xl·y − xl·yl, from (x − xl)(y − yl) >= 0, and yu·x + xu·y − xu·yu; above
    yu·x + xl·y − xl·yu and yl·x + xu·y − xu·yl. Both planes of a side are off by rx·ry in the
    centre and as much on average, so the one with less |left|·rx + |right|·ry has the better
    extreme over the box, and hands on less of what its operands' own relaxations lose.

    Args:
        parallel: the mean of both planes of the side, whose slopes do not depend on the side.

    Source: McCormick (Mathematical Programming 10, 1976).
    """
    if parallel:
        gap = x.radius * y.radius
        middle = -(x.center * y.center)
        return Plane(y.center, x.center, middle + gap if upper else middle - gap)
    ends = (
        ((x.lower, y.upper), (x.upper, y.lower))
        if upper
        else ((x.lower, y.lower), (x.upper, y.upper))
    )
    (x0, y0), (x1, y1) = ends
    spans = [p.abs() * y.radius + q.abs() * x.radius for p, q in ends]
    first = spans[0] <= spans[1]
    at_x, at_y = torch.where(first, x0, x1), torch.where(first, y0, y1)
    return Plane(at_y, at_x, -(at_x * at_y))
