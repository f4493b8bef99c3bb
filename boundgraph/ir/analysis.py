"""Questions about a program as a graph: order, liveness, dominators, dependence, pictures."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike

import networkx as nx

from boundgraph.ir.drawing import to_svg as to_svg
from boundgraph.ir.printer import print_attrs
from boundgraph.ir.program import Program, Value
from boundgraph.ir.types import IntervalType, SymbolicType, TensorType

# Texts of values begin with % or @, so these two can never be one.
_SOURCE, _SINK = "source", "sink"


def graph_view(program: Program, *, params: bool = True) -> nx.DiGraph[str]:
    """The program as a networkx graph; an edge runs from an operand to a result.

    Vertices are the texts of values (`%x`, `@fc.weight`) in the program's order. Their
    attributes are strings: `op` (`input` and `param` for those), `type`, `kind`
    (`tensor`, `interval`, `symbolic`), `attrs`, `label`, `output` (`true`, `false`); an
    edge has `operands`, the positions at which the operand stands.

    Args:
        program: any program.
        params: whether the parameters are vertices.
    """
    graph: nx.DiGraph[str] = nx.DiGraph()
    outputs = set(map(str, program.outputs))

    def place(value: Value, op: str, attrs: str = "") -> None:
        graph.add_node(
            str(value),
            op=op,
            type=str(value.type),
            kind=kind(value.type),
            attrs=attrs,
            label=f"{value} = {op}\n{value.type}",
            output=str(str(value) in outputs).lower(),
        )

    for value in program.inputs:
        place(value, "input")
    for value in program.params if params else ():
        place(value, "param")
    for node in program.nodes:
        place(node.result, node.op, print_attrs(node.attrs))
        for operand in dict.fromkeys(node.inputs):
            if params or not operand.param:
                at = [str(i) for i, value in enumerate(node.inputs) if value == operand]
                graph.add_edge(str(operand), str(node.result), operands=",".join(at))
    return graph


def kind(type_: TensorType) -> str:
    """`tensor`, `interval` or `symbolic`."""
    if isinstance(type_, IntervalType):
        return "interval"
    return "symbolic" if isinstance(type_, SymbolicType) else "tensor"


def liveness(program: Program) -> dict[str, int]:
    """Index of the node that reads a value last, by the value's text.

    An output is read by the `return`, whose index is the number of nodes. A value that
    nothing reads dies where it is made: at its own index, an input at -1.
    """
    last = {str(value): -1 for value in (*program.inputs, *program.params)}
    for index, node in enumerate(program.nodes):
        last[str(node.result)] = index
        last.update((str(value), index) for value in node.inputs)
    last.update((str(value), len(program.nodes)) for value in program.outputs)
    return last


def dominators(program: Program) -> dict[str, str | None]:
    """For each value that depends on an input: the nearest other value on all its paths.

    Paths start at the inputs. None where no single value is on all of them, which is so
    for the inputs themselves. Parameters and what is made of them alone are not listed.
    """
    return {
        value: above if above != _SOURCE else None
        for value, above in _immediate_dominators(program).items()
        if value != _SINK
    }


def cuts(program: Program) -> tuple[str, ...]:
    """The values that every path from an input to an output passes through, in order.

    What comes after a cut depends on the inputs through the cut only, so a program can
    be taken apart there. Empty where no output depends on an input.
    """
    above = _immediate_dominators(program)
    found: list[str] = []
    value = above.get(_SINK, _SOURCE)
    while value != _SOURCE:
        found.append(value)
        value = above[value]
    return tuple(reversed(found))


def _immediate_dominators(program: Program) -> dict[str, str]:
    graph = graph_view(program, params=False)
    graph.add_edges_from((_SOURCE, str(value)) for value in program.inputs)
    graph.add_edges_from((str(value), _SINK) for value in program.outputs if not value.param)
    if _SOURCE not in graph:
        return {}
    above = dict(nx.immediate_dominators(graph, _SOURCE))
    # Older networkx lists the start as its own dominator, newer gives None.
    above.pop(_SOURCE, None)
    return above


def depends_on(program: Program, roots: Iterable[Value]) -> set[str]:
    """Names of the values that depend on given ones, those included.

    Args:
        program: any program.
        roots: inputs, parameters or results of nodes.
    """
    reached = set(map(str, roots))
    names = {text[1:] for text in reached}
    for node in program.nodes:
        if str(node.result) in reached or any(str(value) in reached for value in node.inputs):
            reached.add(str(node.result))
            names.add(node.result.name)
    return names


def to_dot(program: Program, *, params: bool = False) -> str:
    """The program in Graphviz's language."""
    graph = graph_view(program, params=params)
    fills = {"tensor": "#eef2f7", "interval": "#fdecc8", "symbolic": "#d9ecdf"}
    lines = ["digraph program {", '  node [shape=box, style="rounded,filled", fontname=monospace];']
    for name, data in graph.nodes(data=True):
        width = 2 if data["output"] == "true" else 1
        style = f'fillcolor="{fills[data["kind"]]}", penwidth={width}'
        lines.append(f"  {_quoted(name)} [label={_quoted(data['label'])}, {style}];")
    lines += [f"  {_quoted(start)} -> {_quoted(end)};" for start, end in graph.edges]
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def to_graphml(program: Program, path: str | PathLike[str]) -> None:
    """Write the graph, parameters included, as GraphML; all attributes are strings."""
    graph = graph_view(program)
    graph.graph["stage"] = str(program.stage)
    nx.write_graphml(graph, path)
