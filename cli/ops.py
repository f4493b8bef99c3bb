"""`boundgraph ops`: which op has which rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from boundgraph.cli._console import Output
from boundgraph.cli._options import Json, examples

if TYPE_CHECKING:
    from boundgraph.ops._spec import OpSpec

EXAMPLES = examples(
    "boundgraph ops",
    "boundgraph ops --holes",
)
RULES = ("interval", "symbolic", "backward", "lines")
BOUNDABLE = ("interval", "symbolic", "backward")


def ops_command(
    holes: Annotated[bool, typer.Option("--holes", help="Show only ops that lack a rule.")] = False,
    as_json: Json = False,
) -> None:
    """Print the matrix of ops and rules; holes are marked, never silent."""
    from rich.text import Text

    from boundgraph.ops import _spec
    from boundgraph.testing import op_table

    out = Output(as_json)
    table, rows = [], []
    names = rule_names(_spec.all_ops())
    found = {row.op: row for row in op_table()}
    for spec in _spec.all_ops():
        have = {name: getattr(spec, name) is not None for name in names}
        missing = [name for name in names if not have[name] and name in needed(spec)]
        if holes and not missing:
            continue
        row = found[spec.name]
        table.append(
            {
                "op": spec.name,
                "kind": str(spec.kind),
                "rules": have,
                "rounding": row.rounding,
                "training": row.training,
                "tested": row.tested,
                "holes": missing,
            }
        )
        cells = [
            Text("✓", "green")
            if have[name]
            else Text("hole", "bold red")
            if name in missing
            else Text("·", "dim")
            for name in names
        ]
        known = ("·" if not row.training else "✓", "✓" if row.tested else "·")
        rows.append([spec.name, str(spec.kind), *cells, row.rounding, *known, spec.summary])
    missing_count = sum(bool(row["holes"]) for row in table)
    out.table(
        f"{len(rows)} ops",
        ["op", "kind", *names, "rounding", "training", "tested", "what it is"],
        rows,
        caption=(
            f"✓ has the rule   · none needed   hole: none yet ({missing_count} ops). Without a "
            "symbolic or backward rule bounds stay sound but start anew at the op; without an "
            "interval rule the op is refused. rounding: sound has a rule for rounding='sound'. "
            "training: gradients pass its intervals. tested: property tests draw cases of it."
        ),
    )
    out.finish({"ops": table, "holes": missing_count})


def needed(spec: OpSpec) -> tuple[str, ...]:
    """The rules that an op of this kind should have."""
    if spec.kind == "constant":
        return ()
    return (*BOUNDABLE, "lines") if spec.kind == "elementwise" else BOUNDABLE


def rule_names(specs: tuple[OpSpec, ...]) -> list[str]:
    """The rules that an op can have, in the order of the columns."""
    fields: dict[str, Any] = type(specs[0]).__dataclass_fields__ if specs else {}
    return [name for name in RULES if name in fields]
