"""Which op has which rule: a hole is a reviewed line of a golden file, never silent."""

from __future__ import annotations

from collections.abc import Callable

from boundgraph.ops import all_ops


def test_op_table(golden: Callable[[str, str], None]) -> None:
    rows = [f"{'op':24}{'kind':13}{'interval':10}{'symbolic':10}{'relaxed':9}sampler"]
    for spec in all_ops():
        cells = ("yes" if rule else "-" for rule in (spec.interval, spec.symbolic))
        rows.append(
            f"{spec.name:24}{spec.kind:13}{next(cells):10}{next(cells):10}"
            f"{'yes' if spec.relaxed else '-':9}{'yes' if spec.sample else '-'}"
        )
    golden("op_table.txt", "\n".join(rows))


def test_every_interval_rule_has_a_sampler() -> None:
    assert [spec.name for spec in all_ops() if spec.interval and not spec.sample] == []


def test_affine_ops_have_both_rules() -> None:
    for spec in all_ops():
        if spec.kind in ("affine", "structural"):
            assert spec.interval and spec.symbolic, spec.name
            assert spec.magnitude, f"{spec.name}: its rounding cannot be judged"
