"""`boundgraph bounds`: bounds of a model around its example input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from boundgraph.cli._console import Output
from boundgraph.cli._options import (
    Clip,
    Json,
    MaxMemory,
    MaxTime,
    Method,
    ModelFile,
    Norm,
    Rounding,
    examples,
    parse_clip,
    parse_norm,
)

if TYPE_CHECKING:
    from torch import Tensor

    from boundgraph.runtime.module import Bounds

EXAMPLES = examples(
    "boundgraph bounds model.py --eps 0.03",
    "boundgraph bounds model.py --eps 0.1 --clip 0,1 --method mix --label 7 --assert",
)


def bounds_command(
    model: ModelFile,
    eps: Annotated[float, typer.Option("--eps", "-e", help="Radius, in units of the input.")] = 0.1,
    method: Method = "ibp",
    clip: Clip = "none",
    norm: Norm = "inf",
    label: Annotated[
        int | None,
        typer.Option(help="Bound the margins of this class over the others instead."),
    ] = None,
    certified: Annotated[
        bool,
        typer.Option("--assert", help="With --label: exit with 1 unless all margins are above 0."),
    ] = False,
    rows: Annotated[int, typer.Option(help="Rows to print per output.")] = 20,
    rounding: Rounding = "nearest",
    max_time: MaxTime = None,
    max_memory: MaxMemory = None,
    as_json: Json = False,
) -> None:
    """Print bounds of the outputs when every input moves by at most EPS."""
    import torch

    from boundgraph.cli._model_file import load_model_file
    from boundgraph.cli.compile import compile_loaded
    from boundgraph.domains.regions import ball
    from boundgraph.errors import ConfigError

    if certified and label is None:
        raise ConfigError("--assert needs --label: it asserts that the class cannot change")
    out = Output(as_json)
    loaded = load_model_file(model)
    limits = parse_clip(clip)
    p = parse_norm(norm)
    regions = [ball(x, eps, p, limits) if x.is_floating_point() else x for x in loaded.inputs]
    options: dict[str, Any] = {
        "norm": p,
        "rounding": rounding,
        "max_time": max_time,
        "max_memory": max_memory,
    }
    program = compile_loaded(loaded, method, margin=label is not None, **options)
    labels = None if label is None else torch.full((len(loaded.inputs[0]),), label)
    with torch.no_grad():
        bounds = program(*regions, labels=labels)
        center = loaded.model(*loaded.inputs)
    if labels is not None:
        center = center.gather(1, labels[:, None]) - center
    outputs = _outputs(bounds, center)
    for name, lower, value, upper in outputs:
        _print(out, f"{name}, {method}, ε = {eps}", lower, value, upper, rows)
    data: dict[str, Any] = {"method": method, "eps": eps, "rounding": rounding}
    proved = True
    if label is not None:
        others = torch.arange(outputs[0][1].shape[1]) != label
        lowest = outputs[0][1][:, others].amin(1)
        proved = bool((lowest > 0).all())
        data |= {"label": label, "certified": proved, "lowest_margin": lowest.tolist()}
        count = f"{int((lowest > 0).sum())} of {len(lowest)} samples"
        out.say(
            f"Class {label} is proved for {count}.", style="bold green" if proved else "bold red"
        )
    data["outputs"] = [
        {"name": name, "lower": lower.tolist(), "value": value.tolist(), "upper": upper.tolist()}
        for name, lower, value, upper in outputs
    ]
    out.finish(data)
    if certified and not proved:
        raise typer.Exit(1)


def _outputs(bounds: Bounds, center: Any) -> list[tuple[str, Tensor, Tensor, Tensor]]:
    """(name, lower, value, upper) of each output tensor."""
    from torch.utils import _pytree as pytree

    lower, upper = pytree.tree_leaves(bounds.lower), pytree.tree_leaves(bounds.upper)
    values = pytree.tree_leaves(center)
    names = ["output"] if len(values) == 1 else [f"output {i}" for i in range(len(values))]
    return list(zip(names, lower, values, upper, strict=True))


def _print(
    out: Output, title: str, lower: Tensor, value: Tensor, upper: Tensor, limit: int
) -> None:
    flat = zip(
        lower.flatten(1).tolist(), value.flatten(1).tolist(), upper.flatten(1).tolist(), strict=True
    )
    table = [
        (sample, index, f"{low:.5g}", f"{at:.5g}", f"{high:.5g}", f"{high - low:.3g}")
        for sample, (lows, ats, highs) in enumerate(flat)
        for index, (low, at, high) in enumerate(zip(lows, ats, highs, strict=True))
    ]
    hidden = len(table) - limit
    out.table(
        title,
        ["sample", "element", "lower", "value", "upper", "width"],
        table[:limit],
        right=range(6),
        caption=f"{hidden} more rows; see --rows and --json" if hidden > 0 else None,
    )
