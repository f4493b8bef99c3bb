"""The graph view: liveness, dominators, cuts, dependence, and the three pictures."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boundgraph.ir.analysis import (
    cuts,
    depends_on,
    dominators,
    graph_view,
    liveness,
    to_dot,
    to_graphml,
    to_svg,
)
from boundgraph.ir.parser import parse_program
from boundgraph.ir.program import Program

RESIDUAL = parse_program("""
    program(%x: f32[b, 4], %unused: f32[]) {
      param @w: f32[4, 4]
      %abs: f32[4, 4] = abs(@w)
      %a: f32[b, 4] = linear(%x, @w)
      %b: f32[b, 4] = relu(%a) {slope=0.5}
      %c: f32[b, 4] = linear(%b, %abs)
      %d: f32[b, 4] = add(%c, %a)
      %e: f32[b, 4] = mul(%d, %d)
      %dead: f32[b, 4] = relu(%x)
      return %e
    }""")


def test_graph_view() -> None:
    graph = graph_view(RESIDUAL)
    assert list(graph)[:3] == ["%x", "%unused", "@w"]
    assert graph.nodes["%b"] == {
        "op": "relu",
        "type": "f32[b, 4]",
        "kind": "tensor",
        "attrs": "slope=0.5",
        "label": "%b = relu\nf32[b, 4]",
        "output": "false",
    }
    assert graph.nodes["%e"]["output"] == "true"
    assert graph.edges["%d", "%e"]["operands"] == "0,1"
    assert nx.is_directed_acyclic_graph(graph)
    assert "@w" not in graph_view(RESIDUAL, params=False)


def test_liveness() -> None:
    last = liveness(RESIDUAL)
    assert last["%x"] == 6
    assert last["%unused"] == -1
    assert last["@w"] == 1
    assert last["%a"] == 4
    assert last["%dead"] == 6
    assert last["%e"] == len(RESIDUAL.nodes)


def test_dominators() -> None:
    above = dominators(RESIDUAL)
    assert above["%x"] is None
    assert above["%d"] == "%a"
    assert above["%c"] == "%b"
    assert "%abs" not in above
    assert "@w" not in above


def test_cuts() -> None:
    assert cuts(RESIDUAL) == ("%x", "%a", "%d", "%e")
    two = "program(%x: f32[], %y: f32[]) { %a: f32[] = add(%x, %y) %b: f32[] = exp(%a) return"
    assert cuts(parse_program(f"{two} %b }}")) == ("%a", "%b")
    assert cuts(parse_program(f"{two} %a, %b }}")) == ("%a",)
    assert cuts(parse_program(f"{two} %b, %x }}")) == ()
    assert cuts(parse_program("program() { param @w: f32[] return @w }")) == ()


def test_depends_on() -> None:
    (x, unused), w = RESIDUAL.inputs, RESIDUAL.params[0]
    assert depends_on(RESIDUAL, [x]) == {"x", "a", "b", "c", "d", "e", "dead"}
    assert depends_on(RESIDUAL, [unused]) == {"unused"}
    assert depends_on(RESIDUAL, [w]) == {"w", "abs", "a", "b", "c", "d", "e"}
    assert depends_on(RESIDUAL, []) == set()
    assert depends_on(RESIDUAL, [RESIDUAL.nodes[3].result]) == {"c", "d", "e"}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_analyses_agree_with_their_definitions(
    programs: st.SearchStrategy[Program], data: st.DataObject
) -> None:
    """Cuts, dominators and dependence against removing vertices and searching."""
    program = data.draw(programs)
    graph = graph_view(program, params=False)
    starts = {str(value) for value in program.inputs}
    ends = {str(value) for value in program.outputs if not value.param}

    def reached(without: str | None = None) -> set[str]:
        rest = graph.subgraph(set(graph) - {without})
        return {
            end for start in starts & set(rest) for end in (start, *nx.descendants(rest, start))
        }

    live = ends & reached()
    wanted = {value for value in graph if live and not live & reached(value)}
    assert set(cuts(program)) == wanted
    assert depends_on(program, program.inputs) == {text[1:] for text in reached()}
    for value, above in dominators(program).items():
        assert above is None or value not in reached(above)
    to_svg(program, params=True)


def test_dot() -> None:
    text = to_dot(RESIDUAL)
    assert text.startswith("digraph program {")
    assert '"%d" [label="%d = add\\nf32[b, 4]"' in text
    assert '"%a" -> "%d";' in text
    assert "@w" not in text
    assert '"@w" -> "%a";' in to_dot(RESIDUAL, params=True)


def test_graphml_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "program.graphml"
    to_graphml(RESIDUAL, path)
    graph, expected = nx.read_graphml(path), graph_view(RESIDUAL)
    assert dict(graph.nodes(data=True)) == dict(expected.nodes(data=True))
    assert set(graph.edges) == set(expected.edges)
    assert graph.graph["stage"] == "concrete"


SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("params", [False, True])
def test_svg_shows_every_value_without_overlap(params: bool) -> None:
    root = ElementTree.fromstring(to_svg(RESIDUAL, params=params))
    groups = root.findall(f"{SVG}g")
    shown = len(RESIDUAL.inputs) + len(RESIDUAL.nodes) + params * len(RESIDUAL.params)
    assert len(groups) == shown + 1
    boxes = [
        tuple(float(rect.get(key, "")) for key in ("x", "y", "width", "height"))
        for group in groups
        for rect in group.findall(f"{SVG}rect")
    ]
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    for i, (x, y, w, h) in enumerate(boxes):
        assert x >= 0
        assert x + w <= width
        assert y + h <= height
        for x2, y2, w2, h2 in boxes[:i]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    arrows = [path for path in root.findall(f"{SVG}path") if path.get("marker-end")]
    edges = graph_view(RESIDUAL, params=params).number_of_edges() + len(RESIDUAL.outputs)
    assert len(arrows) == edges


def test_svg_is_self_contained_and_escaped() -> None:
    program = parse_program("""
        program(%x: f32[2]) stage=bounded {
          %i: interval f32[2] = interval.source(%x) {note="<b> & \\"c\\""}
          return %i
        }""")
    text = to_svg(program)
    assert text == to_svg(program)
    assert re.findall(r'(?:href|src)="', text) == []
    assert "&lt;b&gt; &amp;" in text
    assert ">interval</text>" in text
    assert ">symbolic</text>" not in text
    ElementTree.fromstring(text)


def test_svg_of_an_empty_program() -> None:
    ElementTree.fromstring(to_svg(parse_program("program() { return }")))
