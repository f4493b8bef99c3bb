"""Evaluate a trained network and put the outcome into its run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from boundgraph.cli._console import Output

if TYPE_CHECKING:
    from torch import nn

    from boundgraph.accuracy import Evaluation
    from boundgraph.data import DataSet
    from boundgraph.training.report import Example
    from boundgraph.training.run import RunFolder

# How many held-out images of each verdict the report shows.
SHOWN = {"certified": 10, "open": 6, "attacked": 6, "wrong": 6}


def evaluate_on(
    model: nn.Module,
    data: DataSet,
    eps: float,
    methods: tuple[str, ...],
    show: bool,
    **options: Any,
) -> Evaluation:
    """Clean, attacked and certified accuracy on the held-out images."""
    from boundgraph.evaluation import evaluate

    pair = (data.x_test, data.y_test)
    return evaluate(model, pair, eps, method=methods, progress=show or None, **options)


def print_evaluation(out: Output, result: Evaluation, title: str) -> None:
    rows = [
        ("clean", f"{result.clean:.1%}", f"{result.clean_correct:,}", "correct as they are"),
        ("attacked", f"{result.attacked:.1%}", f"{result.attacked_correct:,}", result.attack),
        (
            "certified",
            f"{result.certified:.1%}",
            f"{result.certified_correct:,}",
            f"proved by {result.method}",
        ),
    ]
    out.table(title, ["accuracy", "share", f"of {result.n:,}", "how"], rows, right=(1, 2))


def collect_examples(
    model: nn.Module,
    data: DataSet,
    result: Evaluation,
    clip: tuple[float, float] | None,
    norm: float,
) -> list[Example]:
    """A few held-out images of every verdict, with proved margins and successful attacks."""
    import torch

    from boundgraph.attacks import pgd
    from boundgraph.compiler import compile
    from boundgraph.domains.regions import ball
    from boundgraph.domains.specs import Margin

    masks = result.masks
    if masks is None:
        return []
    groups = {
        "certified": masks.certified,
        "open": masks.attacked & ~masks.certified,
        "attacked": masks.clean & ~masks.attacked,
        "wrong": ~masks.clean,
    }
    picked = [
        (int(index), verdict)
        for verdict, mask in groups.items()
        for index in mask.nonzero()[: SHOWN[verdict], 0]
    ]
    device = next(model.parameters()).device
    at = torch.tensor([index for index, _ in picked])
    x, y = data.x_test[at].to(device), data.y_test[at].to(device)
    method = result.method.split("+")[-1]
    region = ball(x, result.eps, norm, clip)
    with torch.no_grad():
        logits = model(x)
        program = compile(model, region, method=method, spec=Margin(logits.shape[1]))
        rows = program(region, labels=y).lower
    margins = rows.scatter(1, y[:, None], torch.inf).amin(1)
    found = pgd(model, x, y, result.eps, clip=clip, norm=norm, loss="margin", restarts=2)
    with torch.no_grad():
        taken_for = model(found.x_adv).argmax(1)
    return [
        _example(verdict, x[i], y[i], logits[i], margins[i], found.x_adv[i], taken_for[i])
        for i, (_, verdict) in enumerate(picked)
    ]


def _example(
    verdict: Any, image: Any, label: Any, logits: Any, margin: Any, moved: Any, taken_for: Any
) -> Example:
    from boundgraph.training.report import Example

    broken = verdict == "attacked" and int(taken_for) != int(label)
    return Example(
        image=image.cpu(),
        label=int(label),
        predicted=int(logits.argmax()),
        verdict=verdict,
        margin=float(margin),
        attacked=moved.cpu() if broken else None,
        attacked_as=int(taken_for) if broken else None,
    )


def write_run(
    run: RunFolder,
    model: nn.Module,
    data: DataSet,
    result: Evaluation,
    clip: tuple[float, float] | None,
    norm: float,
) -> None:
    """Put the evaluation into the run folder and write its report anew."""
    from boundgraph.training.metrics import read_metrics
    from boundgraph.training.report import write_report

    summary = result.as_dict()
    run.write_result(summary)
    write_report(
        run.report_path,
        run.config(),
        read_metrics(run.metrics_path),
        summary,
        collect_examples(model, data, result, clip, norm),
        data.class_names,
    )
