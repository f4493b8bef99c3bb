"""Run in a process of its own with TRITON_INTERPRET=1: the kernels against plain torch."""

from __future__ import annotations

import json
import random
import sys
from unittest import mock

import torch

from boundgraph.domains import interval_linear as op

SIZES = ((1, 1, 1), (16, 32, 32), (33, 31, 65), (3, 70, 17))


def operands(m: int, n: int, k: int, strided: bool) -> list[torch.Tensor]:
    center = torch.randn(m, k)
    radius, weight, bias = torch.rand(m, k) * 0.3, torch.randn(n, k), torch.randn(n)
    weight[0, 0] = 0.0
    if strided:
        center, weight = center.t().contiguous().t(), weight.t().contiguous().t()
        radius = torch.stack((radius, radius), 2).select(2, 0)
    return [center, radius, weight, bias]


def run(kernel: bool, given: list[torch.Tensor], relu: bool, bias: bool) -> list[torch.Tensor]:
    leaves = [tensor.clone(memory_format=torch.preserve_format) for tensor in given]
    leaves = [leaf.double() if not kernel else leaf for leaf in leaves]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    with mock.patch.object(op, "_has_kernel", return_value=kernel):
        first, second = op.interval_linear(*leaves[:3], leaves[3] if bias else None, relu)
        (first.sin().sum() + second.square().sum()).backward()
    grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return [first.detach(), second.detach(), *grads]


def main() -> None:
    torch.manual_seed(0)
    rng = random.Random(0)
    sizes = [*SIZES, *(tuple(rng.randint(1, 70) for _ in range(3)) for _ in range(4))]
    worst = 0.0
    for number, size in enumerate(sizes):
        relu, bias, strided = number % 2 == 0, number % 3 != 2, number % 4 >= 2
        given = operands(*size, strided)
        found = (run(kernel, given, relu, bias) for kernel in (True, False))
        for mine, want in zip(*found, strict=True):
            scale = float(want.norm()) or 1.0
            worst = max(worst, float((mine.double() - want).norm()) / scale)
    json.dump({"worst": worst, "cases": len(sizes)}, sys.stdout)


if __name__ == "__main__":
    main()
