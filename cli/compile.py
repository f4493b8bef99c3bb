"""`boundgraph compile`: capture a model, run the passes, save the bound program."""

from __future__ import annotations

import math
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from boundgraph.cli._console import Output, number
from boundgraph.cli._options import Json, MaxMemory, MaxTime, Method, ModelFile, examples
from boundgraph.cli._plan import MOST_BYTES, show_plan

if TYPE_CHECKING:
    from boundgraph.cli._model_file import LoadedModel
    from boundgraph.runtime.module import BoundProgram

EXAMPLES = examples(
    "boundgraph compile model.py",
    "boundgraph compile model.py:net --method mix --margin -o net.bgp",
    "boundgraph compile model.py --method auto --max-time 0.5",
    "boundgraph compile model.py --gpu-report",
    "boundgraph compile --check model.py --method crown-ibp",
)
REPEATS = 5


def compile_command(
    model: ModelFile,
    method: Method = "ibp",
    margin: Annotated[
        bool, typer.Option("--margin", help="Bound the margins of a label, not the logits.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to save.", show_default="MODEL.bgp"),
    ] = None,
    gpu: Annotated[
        bool,
        typer.Option(
            "--gpu-report",
            help="List the CUDA kernels this becomes: generated code and a model, no timing, no "
            "GPU needed.",
        ),
    ] = False,
    max_time: MaxTime = None,
    max_memory: MaxMemory = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether it can be bounded: no run, no file.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compile a model into a program that bounds its outputs, and say what was done."""
    from boundgraph.cli._model_file import load_model_file

    out = Output(as_json)
    loaded = load_model_file(model, run=not check)
    budget: dict[str, Any] = {"max_time": max_time, "max_memory": max_memory}
    if check:
        _check(out, loaded, method, margin, budget)
        return
    started = time.perf_counter()
    program = compile_loaded(loaded, method, margin=margin, **budget)
    seconds = time.perf_counter() - started
    _captured(out, loaded, program)
    _passes(out, program)
    plan = _plan(out, loaded, program)
    cost = _cost(loaded, program)
    _show_cost(out, cost)
    kernels = None
    if gpu:
        from boundgraph.cli._gpu import gpu_report

        tuned = compile_loaded(loaded, method, margin=margin, tune_for="cuda", **budget)
        kernels = gpu_report(out, loaded, tuned)
    path = output or Path(f"{loaded.path.stem}.bgp")
    program.save(path)
    _usage(out, path, program, margin)
    out.finish(
        {
            "model": str(loaded.path),
            "method": method,
            "frontend": program.info.frontend,
            "nodes": len(program.ir.nodes),
            "passes": [
                {
                    "name": record.name,
                    "nodes_before": record.nodes_before,
                    "nodes_after": record.nodes_after,
                    "milliseconds": record.milliseconds,
                }
                for record in program.records
            ],
            "plan": plan,
            "cost": cost,
            **({} if kernels is None else {"gpu": kernels}),
            "seconds": seconds,
            "output": str(path),
        }
    )


def _check(
    out: Output, loaded: LoadedModel, method: str, margin: bool, budget: dict[str, Any]
) -> None:
    """Capture and compile; what cannot be bounded ends as an error that lists all of it."""
    program = compile_loaded(loaded, method, margin=margin, **budget)
    _captured(out, loaded, program)
    out.say(f"Every op has a rule for {method}.", style="bold")
    counts = Counter(node.op for node in program.records[0].program.nodes)
    out.finish(
        {
            "model": str(loaded.path),
            "method": method,
            "frontend": program.info.frontend,
            "supported": True,
            "ops": dict(counts),
        }
    )


def compile_loaded(
    loaded: LoadedModel,
    method: str,
    *,
    margin: bool = False,
    norm: float = math.inf,
    **options: Any,
) -> BoundProgram:
    """Compile a loaded model; every floating-point input is a region."""
    import torch

    from boundgraph.compiler import compile
    from boundgraph.domains.regions import ball
    from boundgraph.domains.specs import Margin
    from boundgraph.errors import SpecError

    spec = None
    if margin:
        with torch.no_grad():
            output = loaded.model(*loaded.inputs)
        if not isinstance(output, torch.Tensor) or output.dim() != 2:
            shape = getattr(output, "shape", type(output).__name__)
            raise SpecError(f"a margin needs outputs of shape [batch, classes]; got {shape}")
        spec = Margin(output.shape[1])
    regions = [ball(x, 0.0, norm) if x.is_floating_point() else x for x in loaded.inputs]
    return compile(loaded.model, *regions, method=method, spec=spec, **options)


def _captured(out: Output, loaded: LoadedModel, program: BoundProgram) -> None:
    first = program.records[0].program if program.records else program.ir
    counts = Counter(node.op for node in first.nodes)
    ops = ", ".join(f"{count} {op}" if count > 1 else op for op, count in counts.most_common())
    parameters = sum(p.numel() for p in loaded.model.parameters())
    inputs = ", ".join(str(value) + ": " + str(value.type) for value in first.inputs)
    out.say(f"{loaded.path}:{loaded.name}", style="bold")
    out.say(f"  captured by {program.info.frontend}, in evaluation mode")
    out.say(f"  inputs      {inputs}")
    out.say(f"  parameters  {number(parameters)}")
    out.say(f"  ops         {len(first.nodes)}: {ops}")
    out.say()


def _passes(out: Output, program: BoundProgram) -> None:
    rows = [
        (
            record.name,
            str(record.effect),
            record.nodes_before,
            record.nodes_after,
            f"{record.nodes_after - record.nodes_before:+d}"
            if record.nodes_after != record.nodes_before
            else "",
            f"{record.milliseconds:.1f}",
        )
        for record in program.records
    ]
    columns = ["pass", "effect", "before", "after", "change", "ms"]
    out.table("Passes (nodes)", columns, rows, right=(2, 3, 4, 5))


def _example(loaded: LoadedModel, program: BoundProgram) -> tuple[list[Any], Any]:
    """The example input as regions without width, and labels where they are needed."""
    import torch

    from boundgraph.domains.interval import Interval

    inputs = [Interval(x, x) if x.is_floating_point() else x for x in loaded.inputs]
    if program.spec is None:
        return inputs, None
    return inputs, torch.zeros(len(loaded.inputs[0]), dtype=torch.int64)


def _plan(out: Output, loaded: LoadedModel, program: BoundProgram) -> dict[str, Any]:
    """What is bounded how, at what cost."""
    from boundgraph.compiler import plan_of
    from boundgraph.runtime.memory import peak_bytes
    from boundgraph.runtime.timing import measure

    inputs, labels = _example(loaded, program)
    batch = len(loaded.inputs[0])
    # The search for slopes repeats its program; one run of it says nothing.
    timed = peak_bytes(program.ir, batch) <= MOST_BYTES and not program.info.slopes
    times = measure(program, inputs, labels) if timed else None
    return show_plan(out, plan_of(program, batch), times)


def _cost(loaded: LoadedModel, program: BoundProgram) -> dict[str, Any]:
    """Arithmetic and time of the model and of its bounds, for the example inputs."""
    import torch

    from boundgraph.runtime.memory import peak_bytes

    inputs, labels = _example(loaded, program)
    batch = len(loaded.inputs[0])
    whole = peak_bytes(program.ir, batch) <= MOST_BYTES
    run = program.run if whole else program.run_within
    with torch.no_grad():
        model = _measure(lambda: loaded.model(*loaded.inputs))
        bounds = _measure(lambda: run(inputs, labels))
    return {
        "batch": batch,
        "model_flops": model[0],
        "bounds_flops": bounds[0],
        "model_ms": model[1],
        "bounds_ms": bounds[1],
        "bounds_peak_bytes": peak_bytes(program.ir, batch),
    }


def _measure(run: Any) -> tuple[int, float]:
    """Floating-point operations, and the median time in milliseconds."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        run()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        times.append((time.perf_counter() - started) * 1e3)
    return int(counter.get_total_flops()), sorted(times)[REPEATS // 2]


def _show_cost(out: Output, cost: dict[str, Any]) -> None:
    def ratio(bounds: float, model: float) -> str:
        return f"{bounds / model:.1f} ×" if model else "–"

    rows = [
        (
            "arithmetic (FLOP)",
            number(cost["model_flops"]),
            number(cost["bounds_flops"]),
            ratio(cost["bounds_flops"], cost["model_flops"]),
        ),
        (
            "time, eager (ms)",
            f"{cost['model_ms']:.2f}",
            f"{cost['bounds_ms']:.2f}",
            ratio(cost["bounds_ms"], cost["model_ms"]),
        ),
        (
            "memory of bounds, whole (MB, estimated)",
            "",
            f"{cost['bounds_peak_bytes'] / 1e6:.1f}",
            "",
        ),
    ]
    out.table(
        f"Cost for the example input (batch {cost['batch']})",
        ["", "model", "bounds", "ratio"],
        rows,
        right=(1, 2, 3),
        caption="Arithmetic counts matrix products and convolutions.",
    )


def _usage(out: Output, path: Path, program: BoundProgram, margin: bool) -> None:
    given = ", ".join("region" for _ in range(program.info.inputs))
    extra = ", labels=y" if margin else ""
    out.say(f"Saved to {path} ({path.stat().st_size / 1e6:.2f} MB). Use it so:", style="bold")
    out.code(
        "import boundgraph as bg\n"
        f'program = bg.load("{path}")\n'
        "region = bg.LinfBall(x, eps=0.1, clip=(0.0, 1.0))\n"
        f"bounds = program({given}{extra})  # bounds.lower, bounds.upper"
    )
