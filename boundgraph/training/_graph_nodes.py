"""Nodes of ATen graphs, as the passes over a compiled step write them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
VIEWS = (aten.view.default, aten.reshape.default, aten.alias.default, aten.unsqueeze.default)


def call(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A new node with the value that the passes after this one read."""
    node = graph.call_function(target, args, kwargs)
    given, named = fx.node.map_arg((args, kwargs), lambda arg: arg.meta["val"])
    node.meta["val"] = target(*given, **named)
    return node


def replace(graph: fx.Graph, node: fx.Node, other: fx.Node) -> None:
    node.replace_all_uses_with(other)
    graph.erase_node(node)


def ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Everything that the nodes are computed from; a node itself only if another needs it."""
    found: set[fx.Node] = set()
    pending = [source for node in nodes for source in node.all_input_nodes]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += node.all_input_nodes
    return found


def after_tangents(graph: fx.Graph) -> set[Any]:
    """Nodes of the backward part of a graph that will be cut into forward and backward."""
    found: set[Any] = set()
    for node in graph.nodes:
        given = node.op == "placeholder" and "tangents" in str(node.target)
        if given or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def sort(graph: fx.Graph, before: Iterable[fx.Node]) -> None:
    """Put every node behind what it is computed from.

    Nodes of `before` stay in that order as far as that allows, and new ones come as early as
    they can: before any write to an input of the graph, so that what they read is not yet
    overwritten.
    """
    rank: dict[fx.Node, tuple[int, int]] = {node: (i, 0) for i, node in enumerate(before)}
    for i, node in enumerate(graph.nodes):
        if node not in rank:
            rank[node] = (max(rank[source][0] for source in node.all_input_nodes), i + 1)
    nodes = list(graph.nodes)
    missing = {node: len(set(node.all_input_nodes)) for node in nodes}
    ready = [(rank[node], i) for i, node in enumerate(nodes) if not missing[node]]
    heapq.heapify(ready)
    place = {node: i for i, node in enumerate(nodes)}
    last = graph._root
    while ready:
        node = nodes[heapq.heappop(ready)[1]]
        last.append(node)
        last = node
        for user in node.users:
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready, (rank[user], place[user]))
    graph.lint()
