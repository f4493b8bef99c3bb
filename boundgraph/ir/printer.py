"""Write a program as text that the parser reads back to an equal program.

The text depends on the program only: no addresses, no dictionary order of the host,
no source locations unless asked for, so that golden files do not churn.
"""

from __future__ import annotations

import json
import math
from typing import Any

from boundgraph.ir.program import Attrs, Node, Program, Value
from boundgraph.ir.types import Dim
from boundgraph.source import SourceSpan


def print_program(program: Program, *, spans: bool = False) -> str:
    """The program as text.

    Args:
        program: any program, legal or not; printing never fails.
        spans: append to each node, as a comment, where the user wrote it.
    """
    inputs = ", ".join(f"{value}: {value.type}" for value in program.inputs)
    lines = [f"program({inputs}) stage={program.stage} {{"]
    lines += [f"  param {value}: {value.type}" for value in program.params]
    for node in program.nodes:
        comment = _location(node.span) if spans else ""
        lines.append(f"  {print_node(node)}{comment}")
    lines.append(f"  return {_operands(program.outputs)}".rstrip())
    lines.append("}")
    return "\n".join(lines)


def print_node(node: Node) -> str:
    """One node on one line, as it stands in the program's text."""
    attrs = f" {{{print_attrs(node.attrs)}}}" if node.attrs else ""
    return f"{node.result}: {node.result.type} = {node.op}({_operands(node.inputs)}){attrs}"


def print_attrs(attrs: Attrs) -> str:
    """`stride=(2, 2), groups=1`, in the order of the mapping."""
    return ", ".join(f"{name}={print_attr(value)}" for name, value in attrs.items())


def print_attr(value: Any) -> str:
    """One attribute value; `<...>` for what is not plain, which no parser reads."""
    if isinstance(value, tuple):
        inner = ", ".join(map(print_attr, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, Dim):
        return str(value)
    if value is None or type(value) in (bool, int):
        return repr(value)
    if type(value) is float:
        return _print_float(value)
    if type(value) is str:
        return json.dumps(value)
    return f"<{' '.join(repr(value).split())}>"


def _print_float(value: float) -> str:
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return repr(value)


def _operands(values: tuple[Value, ...]) -> str:
    return ", ".join(map(str, values))


def _location(span: SourceSpan | None) -> str:
    if span is None:
        return ""
    # A comment ends with its line, so a span that holds a newline must not.
    return "  # " + " ".join(f"{span.where()} {span.text}".split())
