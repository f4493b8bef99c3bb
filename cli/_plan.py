"""The plan of a program as a table, with what it should cost and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from boundgraph.cli._console import Output, number

if TYPE_CHECKING:
    from boundgraph.planning import Plan
    from boundgraph.runtime.timing import Times

# A run for the clock takes all rows at once; beyond this many bytes there is none.
MOST_BYTES = 2 << 30


def show_plan(out: Output, plan: Plan, times: Times | None) -> dict[str, Any]:
    """Print a plan; the same for JSON.

    Args:
        out: where to.
        plan: of the program.
        times: measured, where they were.
    """
    entries = _entries(plan, times)
    rows = [
        (
            entry["value"],
            entry["read_by"],
            entry["bounds"],
            "" if entry["rows"] is None else number(entry["rows"]),
            number(entry["flops"]),
            number(entry["bytes"]),
            f"{entry['estimated_ms']:.3g}",
            "" if entry["measured_ms"] is None else f"{entry['measured_ms']:.3g}",
        )
        for entry in entries
    ]
    columns = ["value", "read by", "bounds", "rows", "FLOP", "bytes", "ms, est.", "ms"]
    out.table(
        f"Plan ({plan.schedule}, batch {plan.batch})",
        columns,
        rows,
        right=range(3, 8),
        caption=_caption(plan),
    )
    return {
        "schedule": plan.schedule,
        "batch": plan.batch,
        "values": entries,
        "estimated_seconds": plan.seconds,
        "measured_seconds": None if times is None else times.rest + sum(times.walks.values()),
        "portion_bytes": plan.memory,
        "budget": None
        if plan.budget is None
        else {"seconds": plan.budget.seconds, "bytes": plan.budget.memory},
        "considered": [
            {
                "name": option.name,
                "seconds": option.seconds,
                "bytes": option.memory,
                "fits": option.fits,
            }
            for option in plan.options
        ],
    }


def _entries(plan: Plan, times: Times | None) -> list[dict[str, Any]]:
    from boundgraph.planning.plan import BACKWARD, FORWARD, WINDOWS

    found = []
    for task in plan.tasks:
        walked = task.choice == BACKWARD
        seconds = times.walks.get(task.value[1:]) if times is not None and walked else None
        found.append(
            {
                "value": task.value,
                "read_by": ", ".join(task.readers) or "return",
                "bounds": task.choice,
                "rows": task.rows,
                "flops": task.cost.flops,
                "bytes": task.cost.traffic,
                "estimated_ms": plan.machine.seconds(task.cost) * 1e3,
                "measured_ms": None if seconds is None else seconds * 1e3,
            }
        )
    rest = None if times is None else times.rest
    whole = None if times is None else times.rest + sum(times.walks.values())
    parts = [
        (
            "symbolic values" if plan.schedule in (FORWARD, WINDOWS) else "intervals",
            plan.base,
            rest,
        ),
        ("all", plan.cost, whole),
    ]
    for name, cost, spent in parts:
        found.append(
            {
                "value": name,
                "read_by": "",
                "bounds": "",
                "rows": None,
                "flops": cost.flops,
                "bytes": cost.traffic,
                "estimated_ms": plan.machine.seconds(cost) * 1e3,
                "measured_ms": None if spent is None else spent * 1e3,
            }
        )
    return found


def _caption(plan: Plan) -> str:
    text = f"All rows walked; memory in portions of {plan.memory / 1e6:.3g} MB or more."
    if plan.budget is None:
        return text
    others = "; ".join(
        f"{option.name} {option.seconds * 1e3:.3g} ms, {option.memory / 1e6:.3g} MB"
        + ("" if option.fits else " (over)")
        for option in plan.options
    )
    budget = f"Budget: {plan.budget.seconds:g} s, {plan.budget.memory / 1e6:.0f} MB."
    return f"{text} {budget} Considered: {others}."
