"""How torch spells a function of one tensor, and how tests draw operands for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.ir.program import Value
from boundgraph.ops._spec import Lowering, OpCase, Sampler, lowers

aten = torch.ops.aten


def spellings(name: str) -> list[Hashable]:
    """The function, the method and the overload of a name, as far as torch has them.

    In-place variants need no entry: the importer finds `relu_` by `relu`.
    """
    found: list[Hashable] = []
    for module in (torch, F, torch.special):
        target = getattr(module, name, None)
        if callable(target) and target not in found:
            found.append(target)
    if hasattr(Tensor, name):
        found.append(f"Tensor.{name}")
    for packet in (getattr(aten, name, None), getattr(aten, f"special_{name}", None)):
        if packet is not None and "default" in packet.overloads():
            found.append(packet.default)
    return found


def spell(*names: str, op: str = "") -> None:
    """Let all spellings of names without further arguments mean an op.

    Args:
        names: torch's names of the function.
        op: the op of the registry; the first name where absent.
    """

    def lower(b: Lowering, input: Value, inplace: bool = False) -> Value:
        return b.emit(op or names[0], input)

    lowers(*dict.fromkeys(target for name in names for target in spellings(name)))(lower)


def uniform(low: float = -4.0, high: float = 4.0, **choices: Any) -> Sampler:
    """Operands between two numbers; each attribute is drawn from a tuple of choices."""

    def sample(rng: random.Random) -> OpCase:
        shape = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 3)))
        attrs = {name: rng.choice(values) for name, values in choices.items()}
        return OpCase((shape,), attrs, low=low, high=high)

    return sample


def with_attrs(fn: Callable[..., Tensor], attrs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """A function of its points alone."""
    return lambda points: fn(points, **attrs)
