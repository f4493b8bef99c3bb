"""Writes: what else changes when a captured call writes into a tensor.

Every captured call also runs on meta tensors, so who shares memory with whom is torch's
own answer. Calls that share or copy depending on strides are taken to share. Every name
of exactly what was written means the result from then on; a write that another view of
the memory would have to see is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from boundgraph.errors import Diagnostic, UnsupportedError
from boundgraph.frontends import _python as python
from boundgraph.frontends._emitter import Emitter
from boundgraph.frontends._nests import rebuild, tensors_in
from boundgraph.frontends._views import Whole, is_whole
from boundgraph.ir.program import Value
from boundgraph.ops._infer import PROBES
from boundgraph.source import SourceSpan


class Writes:
    """Follows the writes of one import.

    Args:
        root: the user's module, into which nothing may be written.
        env: value of each node; names of what is written are changed here.
        shadows: the same on meta tensors.
        emitter: adds what a write through a view makes of the whole.
    """

    def __init__(
        self,
        root: nn.Module,
        env: dict[fx.Node, Any],
        shadows: dict[fx.Node, list[Any]],
        emitter: Emitter,
    ) -> None:
        self.paths = _canonical_paths(root)
        self.owned: dict[int, tuple[Any, list[Tensor]]] = {}
        self.done: set[fx.Node] = set()
        self._env, self._shadows, self._emitter = env, shadows, emitter
        self._counters = _batch_counters(root)
        self._parameters = {path for path, _ in root.named_parameters()}
        self._stale: set[Value] = set()
        self._errors: list[Diagnostic] = []
        # Memories whose value has been lost track of.
        self._broken: set[int] = set()
        self._parents: dict[int, int] = {}
        # Storages are compared by address, so none may be freed.
        self._kept: list[Tensor] = []

    def keep(self, shadow: Any) -> None:
        """Hold on to the tensors of a result."""
        self._kept += tensors_in(shadow)

    def link(self, first: Tensor, second: Tensor) -> None:
        """From now on a write into one may be a write into the other."""
        self._kept += (first, second)
        self._parents[self._root(first)] = self._root(second)

    def _same_group(self, first: Tensor, second: Tensor) -> bool:
        return self._root(first) == self._root(second)

    def _root(self, tensor: Tensor) -> int:
        root = storage(tensor)
        while self._parents.get(root, root) != root:
            root = self._parents[root]
        return root

    def rebind(
        self,
        node: fx.Node,
        name: str,
        target: Sequence[Tensor],
        result: Any,
        span: SourceSpan | None,
    ) -> None:
        """All names of what was written now mean the result.

        Args:
            node: the call that writes.
            name: how messages call it.
            target: the operand that it writes into, on meta, at each probe.
            result: the value of the operand from then on.
            span: the user's line.
        """
        written = target[0]
        strides = zip(written.shape, written.stride(), strict=True)
        if any(size > 1 and step == 0 for size, step in strides):
            # Meta tensors do not mind; torch does when the model runs.
            self.refuse(
                f"`{name}` writes into a tensor whose elements share memory",
                "write into a copy, made with .clone()",
                span,
            )
        owned = False
        for identity, (value, shadows) in self.owned.items():
            if self._same_group(shadows[0], written):
                owned = True
                if not (isinstance(value, Value) and value.name in self._counters):
                    self.refuse(
                        f"`{name}` writes into {value}, which belongs to the model",
                        "a bound is a property of fixed weights; compute out of place",
                        span,
                    )
                self.owned[identity] = result, shadows
        related = {
            other: found
            for other, shadows in self._shadows.items()
            if (
                found := [
                    i
                    for i, leaf in enumerate(tensors_in(shadows[0]))
                    if self._same_group(leaf, written)
                ]
            )
        }
        apart = [
            other
            for other, found in related.items()
            if not all(same_view(tensors_in(self._shadows[other][0])[i], written) for i in found)
        ]
        whole = self._whole(target) if apart and not owned else None
        changed = None if whole is None else whole.written(self._emitter, target, result)
        if apart and changed is None:
            # Names that nobody reads keep old values, so no whole may be read off them later.
            self._broken.add(storage(written))
        for other, found in related.items():
            if other not in apart:
                self._replace(other, tensors_in(self._shadows[other][0])[found[0]], result)
            elif whole is not None and changed is not None:
                current = Whole(changed, whole.shadows)
                if not self._update(other, found, current, written, result, node):
                    self._refuse_view(name, span)
            elif self._is_live(other, node):
                self._refuse_view(name, span)

    def _replace(self, node: fx.Node, leaf: Tensor, value: Any) -> None:
        self._env[node] = replace_leaves(self._env[node], self._shadows[node][0], leaf, value)

    def _whole(self, target: Sequence[Tensor]) -> Whole | None:
        """The value of the memory that a view is part of, if the graph made it and has it."""
        if storage(target[0]) in self._broken:
            return None
        for other, shadows in self._shadows.items():
            value = self._env[other]
            if (
                other.op not in ("placeholder", "get_attr")
                and isinstance(value, Value)
                and all(isinstance(s, Tensor) and is_whole(s) for s in shadows)
                and storage(shadows[0]) == storage(target[0])
                and shadows[0].dtype == target[0].dtype
            ):
                return Whole(value, shadows)
        return None

    def _update(
        self,
        other: fx.Node,
        related: Sequence[int],
        whole: Whole,
        written: Tensor,
        result: Any,
        node: fx.Node,
    ) -> bool:
        """Names of other views of what was written; the whole itself is always kept current.

        Returns:
            False where a view that is read later cannot be told.
        """
        each = [tensors_in(shadow) for shadow in self._shadows[other]]
        for i in related:
            leaf, view = each[0][i], [leaves[i] for leaves in each]
            near = storage(leaf) == storage(written) and leaf.dtype == written.dtype
            found: Value | None = None
            if same_view(leaf, written):
                found = result
            elif same_view(leaf, whole.shadows[0]):
                found = whole.value
            elif not self._is_live(other, node):
                continue
            elif near:
                shape = python.unify([tuple(t.shape) for t in view], self._probes(view))
                found = whole.viewed(self._emitter, view, shape)
            if found is None:
                return False
            self._replace(other, leaf, found)
        return True

    def _probes(self, view: Sequence[Tensor]) -> Sequence[int]:
        return PROBES if len(view) > 1 else (0,)

    def _refuse_view(self, name: str, span: SourceSpan | None) -> None:
        self.refuse(
            f"`{name}` writes into memory that another view of it reads later: mutation "
            "through a view isn't tracked",
            "compute out of place, e.g. x + 1 instead of x += 1",
            span,
        )

    def _is_live(self, node: fx.Node, current: fx.Node) -> bool:
        return any(user not in self.done and user is not current for user in node.users)

    def watch_statistics(
        self, name: str, read: Sequence[Value], trains: bool, span: SourceSpan | None
    ) -> None:
        """Training updates running statistics; a program never does, so none may be read later.

        Args:
            name: how messages call the call.
            read: its operands.
            trains: it is batch normalisation in training mode.
            span: the user's line.
        """
        if trains:
            self._stale |= {v for v in read if v.param and v.name not in self._parameters}
        elif self._stale.intersection(read):
            stale = ", ".join(sorted(map(str, self._stale.intersection(read))))
            self.refuse(
                f"`{name}` reads {stale} after batch normalisation has updated it",
                "call model.eval(), or use one module for each place",
                span,
            )

    def refuse(self, message: str, help: str, span: SourceSpan | None) -> None:
        """Note a write that cannot be followed."""
        self._errors.append(Diagnostic(message, span, help))

    def raise_refused(self) -> None:
        """Raise an UnsupportedError if there were any, one for each line."""
        found: dict[Any, Diagnostic] = {}
        for item in self._errors:
            span = item.span
            found.setdefault((span.file, span.line) if span and span.line else str(item), item)
        if found:
            raise UnsupportedError(list(found.values()))


def _canonical_paths(root: nn.Module) -> dict[int, str]:
    """The path of each parameter and buffer, the first one of a shared tensor, by identity."""
    named = (*root.named_parameters(), *root.named_buffers())
    return {id(tensor): path for path, tensor in reversed(named)}


def _batch_counters(root: nn.Module) -> set[str]:
    """Paths of the counters that normalisation layers advance in training and never bound."""
    return {
        f"{path}.num_batches_tracked" if path else "num_batches_tracked"
        for path, module in root.named_modules(remove_duplicate=False)
        if isinstance(module, nn.modules.batchnorm._NormBase)
    }


def storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def same_view(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same elements of the same memory in the same order."""
    return bool(
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
