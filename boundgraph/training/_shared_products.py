"""Products of several batches with one weight become one: a pass over a step's graph."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from boundgraph.training import _graph_nodes
from boundgraph.training._graph_nodes import VIEWS, after_tangents, ancestors, call, sort

aten = torch.ops.aten

_TURNS = (aten.t.default, aten.permute.default, aten.transpose.int)
_LIBRARY = (
    aten.convolution.default,
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    operator.getitem,
)
# Where a product has the operand whose rows are samples.
_ROWS = {aten.convolution.default: 0, aten.mm.default: 0, aten.addmm.default: 1}
# Arguments of fx nodes have a type that is a union of everything, so nodes are not typed.
Nodes = tuple[Any, ...]


class SharedProducts(CustomGraphPass):
    """`[x₁; x₂]·W` in place of `x₁·W` and `x₂·W`: convolutions, products and their gradients.

    A step with bounds sends the clean batch and the centres of the regions through the same
    weights. Joined along the batch they take one library call per layer instead of two, and
    so do the gradients of the operand and of the weight. The kernels that make the operands
    write them side by side, so that only inputs of the step are copied. Values are the same.

    It runs on forward and backward together, so that backward reads what forward joined.

    Args:
        copied: elements of operands that no kernel makes, up to which joining pays: a copy
            of 2²⁰ floats takes about 2.5 µs at 3.35 TB/s, two launches 4 µs.
    """

    name = "shared-products"

    def __init__(self, copied: int = 1 << 20) -> None:
        self.copied = copied

    def uuid(self) -> Any:
        """The pass and its options, for the cache of compiled graphs."""
        return (self.name, self.copied, get_hash_for_files((__file__, _graph_nodes.__file__)))

    def __call__(self, graph: fx.Graph) -> None:
        before = list(graph.nodes)
        joining = _Joining(graph, self.copied)
        joining.each(_product_groups(graph), joining.products)
        joining.each(_gradient_groups(graph), joining.convolution_gradients)
        joining.each(_weight_gradient_groups(graph), joining.weight_gradients)
        if joining.joined:
            sort(graph, before)
            graph.eliminate_dead_code()


class _Joining:
    """One run of the pass over one graph; new nodes go to its end until it is sorted."""

    def __init__(self, graph: fx.Graph, copied: int) -> None:
        self.graph, self.copied = graph, copied
        # Joined operands by their parts, in their order.
        self.joined: dict[Nodes, Any] = {}

    def each(self, groups: list[list[Any]], join: Callable[[Nodes], None]) -> None:
        for group in groups:
            for nodes in _independent(group):
                with self.graph.inserting_before(self.graph.output_node()):
                    join(nodes)

    def products(self, nodes: Nodes) -> None:
        """Products of several operands with one weight."""
        place = _ROWS[nodes[0].target]
        nodes = self._ordered(nodes, place)
        whole = self._whole(_arguments(nodes, place))
        if whole is not None:
            self._share(nodes, self._again(nodes[0], {place: whole}))

    def convolution_gradients(self, nodes: Nodes) -> None:
        """Gradients of such convolutions: of the operands side by side, of the rest summed."""
        nodes = self._ordered(nodes, 1)
        results = [_results(node) for node in nodes]
        terms = {i: tuple(r[i] for r in results if i in r) for i in (1, 2)}
        if any(found and not _one_sum(found, len(nodes)) for found in terms.values()):
            return
        wholes = {place: self._whole(_arguments(nodes, place)) for place in (1, 0)}
        if any(whole is None for whole in wholes.values()):
            return
        new = self._again(nodes[0], wholes)
        parts = tuple(r[0] for r in results if 0 in r)
        if parts:
            self._share(parts, call(self.graph, operator.getitem, new, 0))
        for i, found in terms.items():
            if found:
                _replace_terms(found, call(self.graph, operator.getitem, new, i))

    def weight_gradients(self, nodes: Nodes) -> None:
        """Σᵢ gᵢᵀ·xᵢ in one product."""
        turned = [node.args[0] for node in nodes]
        lefts = tuple(turn.args[0] for turn in turned)
        rights = _arguments(nodes, 1)
        for first, second in ((rights, lefts), (lefts, rights)):
            order = self._order(first)
            if order is None:
                continue
            wholes = [self._whole(tuple(parts[i] for i in order)) for parts in (first, second)]
            if wholes[1] is None:
                return
            left, right = wholes if first is lefts else reversed(wholes)
            transposed = self._again(turned[0], {0: left})
            _replace_terms(nodes, self._again(nodes[0], {0: transposed, 1: right}))
            return

    def _ordered(self, nodes: Nodes, place: int) -> Nodes:
        """The nodes in the order in which their operands were joined before, if they were."""
        parts = _arguments(nodes, place)
        order = self._order(parts) or self._order(tuple(_partner(part) for part in parts))
        return nodes if order is None else tuple(nodes[i] for i in order)

    def _order(self, parts: Nodes) -> tuple[int, ...] | None:
        for known in self.joined:
            if set(known) == set(parts) and len(known) == len(parts):
                return tuple(parts.index(part) for part in known)
        return None

    def _whole(self, parts: Nodes) -> Any | None:
        """The operands joined along their rows; None where that costs more than it saves."""
        if parts in self.joined:
            return self.joined[parts]
        values = [part.meta["val"] for part in parts]
        copied = sum(v.numel() for v, p in zip(values, parts, strict=True) if not _computed(p))
        if copied > self.copied or not all(value.is_contiguous() for value in values):
            return None
        if len(set(parts)) < len(parts):
            return None
        whole = call(self.graph, aten.cat.default, list(parts), 0)
        self.joined[parts] = whole
        return whole

    def _share(self, nodes: Nodes, whole: Any) -> None:
        """Readers of several results read their rows of the joined one."""
        sizes = [node.meta["val"].shape[0] for node in nodes]
        split = call(self.graph, aten.split_with_sizes.default, whole, sizes)
        pieces = tuple(call(self.graph, operator.getitem, split, i) for i in range(len(sizes)))
        for node, piece in zip(nodes, pieces, strict=True):
            node.replace_all_uses_with(piece)
        self.joined[pieces] = whole

    def _again(self, node: Any, changed: Mapping[int, Any]) -> Any:
        args = [changed.get(i, arg) for i, arg in enumerate(node.args)]
        return call(self.graph, node.target, *args, **node.kwargs)


def _arguments(nodes: Nodes, place: int) -> Nodes:
    return tuple(node.args[place] for node in nodes)


def _calls(graph: fx.Graph, *targets: Any) -> Iterator[Any]:
    return (node for node in graph.nodes if node.target in targets)


def _product_groups(graph: fx.Graph) -> list[list[Any]]:
    groups: dict[Hashable, list[Any]] = defaultdict(list)
    late = after_tangents(graph)
    for node in _calls(graph, *_ROWS):
        place = _ROWS[node.target]
        rest = tuple(_key(arg) for i, arg in enumerate(node.args) if i != place)
        if _by_rows(node):
            groups[node.target, rest, str(node.kwargs), node in late].append(node)
    return [group for group in groups.values() if len(group) > 1]


def _gradient_groups(graph: fx.Graph) -> list[list[Any]]:
    groups: dict[Hashable, list[Any]] = defaultdict(list)
    for node in _calls(graph, aten.convolution_backward.default):
        groups[tuple(_key(arg) for arg in node.args[2:])].append(node)
    return [group for group in groups.values() if len(group) > 1]


def _weight_gradient_groups(graph: fx.Graph) -> list[list[Any]]:
    """Products gᵀ·x that are terms of one sum."""
    groups: dict[Hashable, list[Any]] = defaultdict(list)
    for node in _calls(graph, aten.mm.default):
        total = _sum_of(node) if _is_weight_gradient(node) else None
        if total is not None:
            groups[total, node.meta["val"].shape].append(node)
    return [group for group in groups.values() if len(group) > 1]


def _is_weight_gradient(node: Any) -> bool:
    turned = node.args[0]
    if turned.target not in _TURNS or turned.args[0].meta["val"].dim() != 2:
        return False
    return turned.target is not aten.permute.default or list(turned.args[1]) == [1, 0]


def _partner(gradient: Any) -> Any:
    """x of the product gᵀ·x of which g is this gradient; None without one."""
    for turned in gradient.users:
        for user in turned.users:
            product = user.target is aten.mm.default and user.args[0] is turned
            if product and _is_weight_gradient(user):
                return user.args[1]
    return None


def _key(arg: Any) -> Hashable:
    """Equal for equal arguments, and for one weight transposed twice."""
    if isinstance(arg, fx.Node):
        if arg.target in _TURNS:
            return (arg.target, *(_key(part) for part in arg.args))
        return arg
    return str(arg)


def _by_rows(node: Any) -> bool:
    """Whether each row of the operand makes one row of the result."""
    if node.target is aten.convolution.default:
        return node.args[0].meta["val"].dim() == node.args[1].meta["val"].dim()
    return node.target is aten.mm.default or bool(node.args[0].meta["val"].dim() == 1)


def _independent(group: list[Any]) -> Iterator[Nodes]:
    """The group in sets of which no node is computed from another."""
    left = list(group)
    while left:
        chosen, rest = [left[0]], []
        above = ancestors(chosen)
        for node in left[1:]:
            below = ancestors([node])
            if node in above or not below.isdisjoint(chosen):
                rest.append(node)
            else:
                chosen.append(node)
                above |= below
        left = rest
        if len(chosen) > 1:
            yield tuple(chosen)


def _computed(node: Any) -> bool:
    """Whether a generated kernel makes this value, so that it can write it anywhere."""
    while node.target in VIEWS:
        node = node.args[0]
    return node.op == "call_function" and node.target not in _LIBRARY


def _results(node: Any) -> dict[int, Any]:
    return {user.args[1]: user for user in node.users}


def _sum_of(node: Any) -> Hashable:
    """The outermost sum of which a node is a term, and the views on the way; None without one."""
    found: Hashable = None
    views: list[Hashable] = []
    while len(node.users) == 1:
        (user,) = node.users
        if _is_plain_sum(user):
            found = (user, tuple(views))
        elif user.target in (*VIEWS, *_TURNS):
            views.append((user.target, str(user.args[1:])))
        else:
            break
        node = user
    return found


def _is_plain_sum(node: Any) -> bool:
    if node.target is not aten.add.Tensor or node.kwargs or node.args[0] is node.args[1]:
        return False
    if not all(isinstance(arg, fx.Node) for arg in node.args):
        return False
    return len({node.meta["val"].shape, *(arg.meta["val"].shape for arg in node.args)}) == 1


def _one_sum(nodes: Nodes, count: int) -> bool:
    roots = {_sum_of(node) for node in nodes}
    return len(nodes) == count and len(roots) == 1 and None not in roots


def _replace_terms(nodes: Nodes, whole: Any) -> None:
    """One term of a sum stands for all of these."""
    nodes[0].replace_all_uses_with(whole)
    for node in nodes[1:]:
        (user,) = node.users
        while user.target is not aten.add.Tensor:
            node, (user,) = user, user.users
        (other,) = (arg for arg in user.args if arg is not node)
        user.replace_all_uses_with(other)
