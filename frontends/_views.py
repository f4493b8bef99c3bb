"""Writes through a view: the whole tensor anew, and its other views read off that.

A view is known by the places of its elements in the memory that it shares, which meta
tensors tell. So `x[:, 1:] = y` is one tensor joined with another, from which the elements
that are current are picked: ops that have every rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boundgraph.frontends._emitter import Emitter
from boundgraph.ir.program import Value


@dataclass(frozen=True)
class Whole:
    """All of a memory: its value, and its tensor at each probe.

    Args:
        value: what is in it.
        shadows: meta tensors, contiguous from the start of the memory.
    """

    value: Value
    shadows: Sequence[Tensor]

    def places(self, view: Sequence[Tensor]) -> tuple[Tensor, bool] | None:
        """Where a view's elements are, and whether they are counted in each sample.

        None where that depends on the batch size.
        """
        if _same_size(self.shadows) and _same_size(view):
            return _flat(self.shadows[0], view[0]), False
        each = [_in_sample(whole, part) for whole, part in zip(self.shadows, view, strict=True)]
        first = each[0]
        if first is None or any(item is None or not torch.equal(item, first) for item in each):
            return None
        return first, True

    def _lines(self, emitter: Emitter, value: Value, by_sample: bool) -> Value:
        """The value in one dimension, after that of the samples where they are apart."""
        shape = value.type.shape
        count = _count(shape[1:] if by_sample else shape)
        target = (shape[0], count) if by_sample else (count,)
        return value if shape == target else emitter.emit("reshape", value, shape=target)

    def written(self, emitter: Emitter, view: Sequence[Tensor], result: Value) -> Value | None:
        """The whole after `result` was written into a view; None where that has no one meaning."""
        found = self.places(view)
        if found is None:
            return None
        places, by_sample = found
        if places.unique().numel() != places.numel():
            return None
        whole, part = (self._lines(emitter, v, by_sample) for v in (self.value, result))
        dim, size = int(by_sample), _count(whole.type.shape[int(by_sample) :])
        index = torch.arange(size, device="cpu")
        index[places] = torch.arange(size, size + places.numel(), device="cpu")
        joined = emitter.emit("cat", whole, part, dim=dim)
        picked = emitter.emit("index_select", joined, emitter.constant(index), dim=dim)
        return emitter.emit("reshape", picked, shape=self.value.type.shape)

    def viewed(self, emitter: Emitter, view: Sequence[Tensor], shape: object) -> Value | None:
        """What a view of the whole holds."""
        found = self.places(view)
        if found is None:
            return None
        places, by_sample = found
        whole = self._lines(emitter, self.value, by_sample)
        index = emitter.constant(places)
        picked = emitter.emit("index_select", whole, index, dim=int(by_sample))
        return emitter.emit("reshape", picked, shape=shape)


def is_whole(tensor: Tensor) -> bool:
    """Whether a tensor is all of its memory, in order."""
    size = tensor.numel() * tensor.element_size()
    same = tensor.untyped_storage().nbytes() == size
    return bool(same and tensor.storage_offset() == 0 and tensor.is_contiguous())


def _count(shape: Sequence[object]) -> int:
    total = 1
    for entry in shape:
        assert isinstance(entry, int)
        total *= entry
    return total


def _same_size(tensors: Sequence[Tensor]) -> bool:
    return all(tensor.shape == tensors[0].shape for tensor in tensors)


def _flat(whole: Tensor, part: Tensor) -> Tensor:
    numbers = torch.arange(whole.numel(), device="cpu")
    picked = torch.as_strided(numbers, part.shape, part.stride(), part.storage_offset())
    return picked.reshape(-1)


def _in_sample(whole: Tensor, part: Tensor) -> Tensor | None:
    """Places within one sample of the whole, where the view has all samples apart."""
    if not whole.ndim or not part.ndim or whole.shape[0] != part.shape[0]:
        return None
    size = whole.numel() // whole.shape[0]
    if part.stride(0) != size or part.storage_offset() >= size:
        return None
    numbers = torch.arange(size, device="cpu")
    shape, stride = part.shape[1:], part.stride()[1:]
    last = part.storage_offset() + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if last >= size:
        return None
    return torch.as_strided(numbers, shape, stride, part.storage_offset()).reshape(-1)
