"""Which captured values share memory, and what a write into one does to the others.

Every captured call also runs on meta tensors, so who shares memory with whom is torch's
own answer. Calls that share or copy depending on strides are taken to share.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from boundgraph.frontends._generic import rebuild


class Aliases:
    """Groups of storages that may be one memory."""

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}
        # Storages are compared by address, so none may be freed.
        self._kept: list[Tensor] = []

    def keep(self, tensor: Tensor) -> None:
        self._kept.append(tensor)

    def link(self, first: Tensor, second: Tensor) -> None:
        """From now on a write into one may be a write into the other."""
        self._parents[self._root(first)] = self._root(second)

    def same_group(self, first: Tensor, second: Tensor) -> bool:
        return self._root(first) == self._root(second)

    def _root(self, tensor: Tensor) -> int:
        root = storage(tensor)
        while self._parents.get(root, root) != root:
            root = self._parents[root]
        return root


def storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def same_view(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same elements of the same memory in the same order."""
    return (
        storage(first) == storage(second)
        and first.storage_offset() == second.storage_offset()
        and first.shape == second.shape
        and first.stride() == second.stride()
        and first.dtype == second.dtype
    )


def written(tensors: list[Tensor], before: list[int]) -> list[Tensor]:
    """The operands that a call wrote into, by their version counters."""
    return [
        tensor
        for tensor, version in zip(tensors, before, strict=True)
        if tensor._version != version
    ]


def is_live(node: fx.Node, current: fx.Node, done: set[fx.Node]) -> bool:
    """Whether something after the current node reads a node's value."""
    return any(user not in done and user is not current for user in node.users)


def replace_leaves(value: Any, shadow: Any, old: Tensor, new: Any) -> Any:
    """A nest of values in which those that stand for the tensor `old` are now `new`."""
    if isinstance(shadow, Tensor):
        return new if same_view(shadow, old) else value
    if isinstance(shadow, tuple | list):
        return rebuild(
            value,
            [replace_leaves(v, s, old, new) for v, s in zip(value, shadow, strict=True)],
        )
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a nest of containers."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []
