"""What backward computes again instead of reading it: a pass over a step's joint graph."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.utils.checkpoint import CheckpointPolicy

from boundgraph.training import _graph_nodes
from boundgraph.training._graph_nodes import VIEWS, after_tangents, call, replace

aten = torch.ops.aten


class RecomputedBounds(CustomGraphPass):
    """Chooses what forward stores for backward, by the bytes that kernels move.

    - Values that follow point by point from few tensors in memory are computed again. The
      lines of a relu need a slope and an offset, which forward could store; both follow from
      the centre and the radius that a layer wrote. torch's partitioner prefers to store what is
      near backward. Here each set of values that comes from no more tensors than it has
      members is marked.
    - The masks of the relus of one layer (clean, lower and upper ends) share a byte.
    - The bias of a convolution is added by what reads it, so that the library's own result is
      what is stored.

    Values stay the same. A graph that is not cut into forward and backward is left as it is.

    Args:
        least: elements of a tensor from which it matters.
    """

    name = "recomputed-bounds"

    def __init__(self, least: int = 1 << 12) -> None:
        self.least = least

    def uuid(self) -> Any:
        """The pass and its options, for the cache of compiled graphs."""
        return (self.name, self.least, get_hash_for_files((__file__, _graph_nodes.__file__)))

    def __call__(self, graph: fx.Graph) -> None:
        late = after_tangents(graph)
        if not late:
            return
        for node in list(graph.nodes):
            if node.target is aten.convolution.default and node not in late:
                _split_bias(graph, node)
        early = [node for node in graph.nodes if node not in late]
        self._pack(graph, early, self._all_sources(early))
        early = [node for node in graph.nodes if node not in late]
        sources = self._all_sources(early)
        needed: dict[frozenset[Any], int] = defaultdict(int)
        for node in early:
            if self._light(node) and _floating(node) and any(user in late for user in node.users):
                needed[sources[node]] += 1
        again = {found for found, count in needed.items() if 0 < len(found) <= count}
        for node in early:
            # Those of forward, too: equal ones in both become one.
            if self._light(node) and sources[node] in again:
                self._mark(node)

    def _pack(self, graph: fx.Graph, early: list[Any], sources: Mapping[Any, Any]) -> None:
        """Masks of relus that one kernel can make, in the bits of a byte."""
        groups: list[tuple[set[Any], list[Any]]] = []
        for node in early:
            relu = _relu_of(node)
            if relu is None or node.meta["val"].numel() < self.least:
                continue
            shape = node.meta["val"].shape
            found = {source for source in sources[relu.args[0]] if source.target in _LIBRARY}
            for known, masks in groups:
                alike = masks[0].meta["val"].shape == shape and len(masks) < 8
                if alike and not known.isdisjoint(found):
                    known |= found
                    masks.append(node)
                    break
            else:
                groups.append((found, [node]))
        place = {node: i for i, node in enumerate(early)}
        for _, masks in groups:
            masks.sort(key=lambda mask: place[_relu_of(mask)])
            _share_a_byte(graph, masks)

    def _all_sources(self, nodes: list[Any]) -> dict[Any, frozenset[Any]]:
        sources: dict[Any, frozenset[Any]] = {}
        for node in nodes:
            sources[node] = self._sources(node, sources)
        return sources

    def _sources(self, node: Any, known: dict[Any, frozenset[Any]]) -> frozenset[Any]:
        """The large tensors in memory from which a value is computed point by point."""
        if _same(node) or self._light(node):
            return frozenset().union(*(known[source] for source in node.all_input_nodes))
        value = node.meta.get("val")
        large = isinstance(value, torch.Tensor) and value.numel() >= self.least
        return frozenset([node]) if large else frozenset()

    def _light(self, node: Any) -> bool:
        """Whether a value is point-wise, cheap, and not read by a library."""
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, torch.Tensor):
            return False
        tags = getattr(node.target, "tags", ())
        drawn = torch.Tag.nondeterministic_seeded in tags
        cheap = torch.Tag.pointwise in tags and not drawn and node.target not in _DEAR
        return cheap and not _stored(node)

    def _mark(self, node: Any) -> None:
        pending = [node]
        while pending:
            node = pending.pop()
            if "recompute" in node.meta or not (self._light(node) or _same(node)):
                continue
            node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
            pending += node.all_input_nodes


# The same elements: no computation.
_SAME = (
    *VIEWS, aten.t.default, aten.permute.default, aten.transpose.int, aten.expand.default,
    aten.split_with_sizes.default,
)  # fmt: skip
_LIBRARY = (
    aten.convolution.default, aten.convolution_backward.default, aten.mm.default,
    aten.addmm.default, aten.bmm.default, aten.baddbmm.default,
)  # fmt: skip
_CAST = torch.ops.prims.convert_element_type.default
_DEAR = (
    aten.exp.default, aten.expm1.default, aten.log.default, aten.log1p.default, aten.tanh.default,
    aten.sigmoid.default, aten.erf.default, aten.sin.default, aten.cos.default,
    aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.asin.default, aten.acos.default,
    aten.atan.default,
)  # fmt: skip


def _relu_of(mask: Any) -> Any | None:
    """The relu that gives 0 where a mask holds, as its gradient reads it; None for another node."""
    if mask.target is not aten.le.Scalar or mask.args[1] != 0:
        return None
    relu = mask.args[0]
    while relu.target is aten.alias.default:
        relu = relu.args[0]
    return relu if relu.target is aten.relu.default else None


def _share_a_byte(graph: fx.Graph, masks: list[Any]) -> None:
    """Masks as bits of one stored tensor, made where the last of their relus is."""
    relus: list[Any] = [_relu_of(mask) for mask in masks]
    place = relus[-1]

    def put(target: Any, *args: Any) -> Any:
        nonlocal place
        with graph.inserting_after(place):
            place = call(graph, target, *args)
        return place

    code = None
    for i, relu in enumerate(relus):
        bit = put(_CAST, put(aten.le.Scalar, relu.args[0], 0), torch.uint8)
        bit = put(aten.mul.Tensor, bit, 1 << i) if i else bit
        code = bit if code is None else put(aten.bitwise_or.Tensor, code, bit)
    assert code is not None
    code.meta["recompute"] = CheckpointPolicy.MUST_SAVE
    for i, mask in enumerate(masks):
        found = put(aten.ne.Scalar, put(aten.bitwise_and.Scalar, code, 1 << i), 0)
        mask.replace_all_uses_with(found)
    # Forward reads the byte as well, or it would be made by backward from what it stands for.
    kept = put(aten.where.self, found, relus[-1], relus[-1].args[0])
    relus[-1].replace_all_uses_with(kept, delete_user_cb=lambda user: user is not kept)
    for mask in masks:
        graph.erase_node(mask)


def _split_bias(graph: fx.Graph, node: Any) -> None:
    """What the library writes is stored, and not once more with the bias."""
    x, weight, bias = node.args[:3]
    if bias is None:
        return
    with graph.inserting_after(node):
        plain = call(graph, node.target, x, weight, None, *node.args[3:])
    with graph.inserting_after(plain):
        shape = (1, -1, *(1,) * (node.meta["val"].dim() - 2))
        wide = call(graph, aten.reshape.default, bias, shape)
    with graph.inserting_after(wide):
        whole = call(graph, aten.add.Tensor, plain, wide)
    replace(graph, node, whole)


def _same(node: Any) -> bool:
    if node.target is operator.getitem:
        return node.args[0].target in _SAME
    return node.target in _SAME


def _floating(node: Any) -> bool:
    return bool(node.meta["val"].is_floating_point())


def _stored(node: Any) -> bool:
    """Whether a library reads a value, or it is part of a larger one: it is in memory anyway."""
    return any(
        user.target in (*_LIBRARY, aten.cat.default) or (_same(user) and _stored(user))
        for user in node.users
    )
