"""The bound loss of a batch portion by portion, each with its gradient before the next starts.

What a backward walk keeps for its gradient is many times an ordinary step's. Samples do not
depend on each other, so half of them at a time need half of it, and nothing is computed twice:
the gradient of a portion is taken at once and waits, as large as the parameters, for the factor
that the rest of the loss gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from boundgraph.ir.program import Program
from boundgraph.ir.types import FormType
from boundgraph.runtime.memory import peak_bytes

# Bytes of bounds, as estimated without gradients, that a portion may take, and the fewest samples:
# on a CIFAR ResNet 8 of 16 at a time cost 1 % of the time, 4 a tenth.
BUDGET, LEAST = 48 << 20, 8
# The mean bound loss and the certified share of some samples.
Measure = Callable[[slice], tuple[Tensor, Tensor]]


def portions(program: Program, x: Tensor, parameters: Sequence[Tensor]) -> list[slice]:
    """Samples to bound at a time: all where they fit, or where gradients cannot wait.

    Args:
        program: bounds every sample by itself.
        x: the samples, `[batch, ...]`.
        parameters: whose gradients are wanted.
    """
    count = len(x)
    whole = [slice(0, count)]
    if torch.compiler.is_compiling() or x.device.type != "cpu" or count < 2 * LEAST:
        return whole
    waits = torch.is_grad_enabled() and not x.requires_grad and bool(parameters)
    # A hook on a gradient is there for the whole one.
    waits = waits and not any(p._backward_hooks for p in parameters)
    if not waits or torch._C._are_functorch_transforms_active():
        return whole
    # Without forms there is little to save.
    if not any(isinstance(node.result.type, FormType) for node in program.nodes):
        return whole
    parts = min(-(-peak_bytes(program, count) // BUDGET), count // LEAST)
    step = -(-count // parts)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


class _Portions(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, measure: Measure, parts: list[slice], *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        count = parts[-1].stop
        total, certified = torch.zeros(2, dtype=parameters[0].dtype).unbind()
        grads: list[Tensor | None] = [None] * len(parameters)
        for part in parts:
            share = (part.stop - part.start) / count
            with torch.enable_grad():
                loss, proved = measure(part)
                found = torch.autograd.grad(loss * share, parameters, allow_unused=True)
            total = total + loss.detach() * share
            certified = certified + proved.detach() * share
            grads = list(_added(grads, found))
            del loss, proved, found
        ctx.grads = grads
        ctx.mark_non_differentiable(certified)
        return total, certified

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        return (None, None, *(None if g is None else g * grad for g in ctx.grads))


def _added(sums: list[Tensor | None], more: tuple[Tensor | None, ...]) -> Iterator[Tensor | None]:
    for total, term in zip(sums, more, strict=True):
        if total is None or term is None:
            yield term if total is None else total
        else:
            # Not in place: a gradient may be a tensor that something else holds, too.
            yield total + term


def in_portions(
    measure: Measure, parts: list[slice], parameters: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """`measure` of all samples, its gradient included. Gradients can be taken once."""
    if len(parts) == 1:
        return measure(parts[0])
    found: tuple[Tensor, Tensor] = _Portions.apply(  # type: ignore[no-untyped-call]
        measure, parts, *parameters
    )
    return found
