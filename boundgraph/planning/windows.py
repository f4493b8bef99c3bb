"""Where generators of images lie on windows, for the estimate of a plan."""

from __future__ import annotations

from boundgraph.ir.program import Node
from boundgraph.ops._windowed import Layout, layout_after, own_layout
from boundgraph.planning.cost import Costs


def window_entries(costs: Costs) -> dict[str, int] | None:
    """How many numbers each element of a value has, with windows where they pay.

    In place of `Costs.symbols`: what rules do grows with these numbers. None where no value
    would lie on windows.
    """
    dims = costs.batch_dims
    if dims is None:
        return None
    layouts: dict[str, Layout] = {}
    for key in (*costs.sources, *costs.nodes):
        if key in costs.graph:
            layout = _layout(costs, dims, layouts, key)
            if layout is not None:
                layouts[key] = layout
    blocks = costs.blocks()
    found = {key: sum(blocks[key].values()) for key in blocks}
    for key, layout in layouts.items():
        found[key] = sum(count for _, count in layout.entries(blocks[key]))
    return found if layouts else None


def _layout(
    costs: Costs, dims: dict[str, int | None], layouts: dict[str, Layout], key: str
) -> Layout | None:
    """Of a value whose operands are known."""
    node: Node | None = costs.nodes.get(key)
    spec = None if node is None else costs.spec(node)
    if node is None or spec is None or spec.symbolic is None:
        return _own(costs, dims, key)
    found = layout_after(node, spec, [layouts.get(str(value)) for value in node.inputs])
    if found is None or not costs.adds_symbols(node):
        return found
    own = _own(costs, dims, key)
    return own and Layout(found.features, {**found.blocks, **own.blocks}, found.flat)


def _own(costs: Costs, dims: dict[str, int | None], key: str) -> Layout | None:
    shape, batch = costs.values[key].type.shape, dims.get(key)
    features = tuple(size for i, size in enumerate(shape) if i != batch and isinstance(size, int))
    return own_layout(key, features, batch) if len(features) == len(shape) - 1 else None
