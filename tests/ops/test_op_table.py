"""Which op has which rule: a hole is a reviewed line of a golden file, never silent."""

from __future__ import annotations

from collections.abc import Callable

from boundgraph.ops import all_ops
from boundgraph.testing import op_table


def _mark(value: bool | None) -> str:
    return "?" if value is None else "yes" if value else "-"


def test_op_table(golden: Callable[[str, str], None]) -> None:
    head = f"{'op':24}{'kind':13}{'interval':10}{'symbolic':10}{'linear':8}"
    rows = [f"{head}{'rounding':10}{'training':10}tested"]
    rows += [
        f"{row.op:24}{row.kind:13}{_mark(row.interval):10}{_mark(row.symbolic):10}"
        f"{_mark(row.linear):8}{row.rounding:10}{_mark(row.training):10}{_mark(row.tested)}"
        for row in op_table()
    ]
    golden("op_table.txt", "\n".join(rows))


def test_elementwise_ops_have_lines_or_the_fallback() -> None:
    assert [
        row.op
        for row in op_table()
        if row.kind == "elementwise" and row.interval and not row.linear
    ] == []


def test_every_interval_rule_has_a_sampler() -> None:
    assert [spec.name for spec in all_ops() if spec.interval and not spec.sample] == []


def test_affine_ops_have_both_rules() -> None:
    for spec in all_ops():
        if spec.kind in ("affine", "structural"):
            assert spec.interval and spec.symbolic, spec.name
            assert spec.magnitude, f"{spec.name}: its rounding cannot be judged"
