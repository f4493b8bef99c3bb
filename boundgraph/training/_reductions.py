"""Sums over samples and positions in two stages: a pass over the graphs of a compiled step."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from boundgraph.training import _graph_nodes
from boundgraph.training._graph_nodes import call, replace

aten = torch.ops.aten


class TwoStageReductions(CustomGraphPass):
    """`sum(x, samples and positions)` becomes a sum over positions and one over samples.

    Such a sum is the gradient of a bias or of a scale, over a whole activation for each
    channel: too few blocks for a GPU, so code generators cut it into pieces, which then are no
    longer in the order in which `x` is made, and read `x` once more. A sum over the positions
    of each sample and channel is in that order: it is made in the pass that makes `x`.
    Variances are put together from those of the samples, by the law of total variance.

    Args:
        least: elements summed for each channel from which it is done.
    """

    name = "two-stage-reductions"

    def __init__(self, least: int = 16384) -> None:
        self.least = least

    def uuid(self) -> Any:
        """The pass and its options, for the cache of compiled graphs."""
        return (self.name, self.least, get_hash_for_files((__file__, _graph_nodes.__file__)))

    def __call__(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.op != "call_function" or not self._large(node):
                continue
            with graph.inserting_before(node):
                if node.target is aten.sum.dim_IntList:
                    self._split_sum(graph, node)
                elif node.target is aten.var_mean.correction:
                    self._split_variance(graph, node)

    def _large(self, node: fx.Node) -> bool:
        if node.target not in (aten.sum.dim_IntList, aten.var_mean.correction):
            return False
        arguments: Any = node.args
        value = arguments[0].meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dim() < 3 or len(arguments) < 2:
            return False
        rank = value.dim()
        dims = sorted(dim % rank for dim in arguments[1] or ())
        if dims != [0, *range(2, rank)] or not value.is_contiguous():
            return False
        count = value.numel() // value.shape[1]
        return isinstance(count, int) and count >= self.least

    def _split_sum(self, graph: fx.Graph, node: fx.Node) -> None:
        if node.kwargs:
            return
        x: Any = node.args[0]
        keep = len(node.args) > 2 and bool(node.args[2])
        positions = list(range(2, x.meta["val"].dim()))
        inner = call(graph, aten.sum.dim_IntList, x, positions, keep)
        outer = call(graph, aten.sum.dim_IntList, inner, [0], keep)
        replace(graph, node, outer)

    def _split_variance(self, graph: fx.Graph, node: fx.Node) -> None:
        readers = list(node.users)
        biased = node.kwargs.get("correction") == 0 and bool(node.kwargs.get("keepdim"))
        taken = all(user.target is operator.getitem for user in readers)
        if not biased or not taken or len(node.kwargs) > 2:
            return
        x: Any = node.args[0]
        positions = list(range(2, x.meta["val"].dim()))
        options: dict[str, Any] = {"correction": 0, "keepdim": True}
        parts = call(graph, aten.var_mean.correction, x, positions, **options)
        variances, means = (call(graph, operator.getitem, parts, i) for i in (0, 1))
        mean = call(graph, aten.mean.dim, means, [0], True)
        within = call(graph, aten.mean.dim, variances, [0], True)
        apart = call(graph, aten.sub.Tensor, means, mean)
        between = call(graph, aten.mean.dim, call(graph, aten.mul.Tensor, apart, apart), [0], True)
        variance = call(graph, aten.add.Tensor, within, between)
        for user in readers:
            replace(graph, user, mean if user.args[1] == 1 else variance)
        graph.erase_node(node)
