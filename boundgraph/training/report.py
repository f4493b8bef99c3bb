"""The report of a run: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from boundgraph.training._style import STYLE
from boundgraph.training.figures import Records, shown, svg_panel

Verdict = Literal["certified", "open", "attacked", "wrong"]
VERDICTS: dict[Verdict, tuple[str, str]] = {
    "certified": ("certified", "proved: no allowed change of the image changes the class"),
    "open": ("open", "no attack found, no proof either"),
    "attacked": ("attacked", "an allowed change of the image changes the class"),
    "wrong": ("wrong", "misclassified as it is"),
}


@dataclass(frozen=True)
class Example:
    """One held-out image and what is known about it.

    Args:
        image: `[channels, height, width]` in [0, 1].
        label, predicted: class indices.
        verdict: what was shown about it.
        margin: lower bound of the smallest margin of the label over the region.
        attacked: the image that an attack made of it, where that succeeded.
        attacked_as: the class it is then taken for.
    """

    image: Tensor
    label: int
    predicted: int
    verdict: Verdict
    margin: float
    attacked: Tensor | None = None
    attacked_as: int | None = None


def write_report(
    path: Path,
    config: Mapping[str, Any],
    records: Records,
    result: Mapping[str, Any] | None,
    examples: Sequence[Example] = (),
    class_names: Sequence[str] = (),
) -> None:
    """Write the report of a run.

    Args:
        path: the file.
        config: as in the run folder.
        records: the metrics, one record an epoch.
        result: of the final evaluation: `clean`, `attacked`, `certified` as fractions, `n`,
            `eps`, `method`, `seconds`, `attack`; None where there was none.
        examples: images to show with their verdicts.
        class_names: shown for labels where given.
    """
    train, data = config.get("train", {}), config.get("data", {})
    name, recipe = data.get("name", "run"), train.get("recipe", {}).get("name", "training")
    title = f"{name} · {recipe} · ε = {train.get('eps', '?')}"
    sections = [
        _header(title, config, result),
        _results(result),
        _curves(records),
        _examples(examples, class_names, result),
        _reuse(path.parent, config),
        _settings(config),
    ]
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _header(title: str, config: Mapping[str, Any], result: Mapping[str, Any] | None) -> str:
    data = config.get("data", {})
    release = config.get("versions", {}).get("boundgraph", "")
    made = f"{config.get('created', '')} · BoundGraph {release}"
    lead = f"<p class=lead>{escape(data.get('summary', ''))}</p>"
    if result is None:
        lead += "<p class=lead>The network was not evaluated yet.</p>"
    return f"<header><p class=small>{escape(made)}</p><h1>{escape(title)}</h1>{lead}</header>"


def _results(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return ""
    n, eps = int(result["n"]), result["eps"]
    attack = result.get("attack") or "an attack"
    rows = (
        ("clean", "Clean", "classified correctly as they are"),
        ("attacked", "Attacked", f"still correct after {attack}"),
        (
            "certified",
            "Certified",
            f"proved correct for every change up to ε (method {result['method']})",
        ),
    )
    cards = "".join(
        f'<div class="card {key}"><p>{name}</p><b>{result[key]:.1%}</b>'
        f"<p class=small>{round(result[key] * n):,} of {n:,}<br>{escape(text)}</p></div>"
        for key, name, text in rows
    )
    count = round(result["certified"] * n)
    seconds = result.get("seconds")
    spent = f" Evaluation took {seconds:.1f} s." if isinstance(seconds, int | float) else ""
    return (
        f"<section><div class=cards>{cards}</div>"
        f"<p>On {count:,} of {n:,} held-out images the class is proved not to change, however "
        f"every pixel is changed by up to {eps} within its valid range. The true share of images "
        "that no such change can fool lies between the certified and the attacked figure.</p>"
        f"<p class=small>Bounds are computed in floating point, rounded to nearest.{spent}</p>"
        "</section>"
    )


def _curves(records: Records) -> str:
    panels = shown(records)
    if not panels:
        return ""
    drawn = "".join(f"<figure>{svg_panel(panel, records)}</figure>" for panel in panels)
    return (
        f"<section><h2>Training</h2><div class=panels>{drawn}</div>"
        "<p class=small>Training accuracy is measured while the weights still move and, where "
        "certified, at the radius trained with (train_eps · ε); held-out accuracy after each epoch "
        "at the full radius.</p></section>"
    )


def _examples(
    examples: Sequence[Example], names: Sequence[str], result: Mapping[str, Any] | None
) -> str:
    if not examples:
        return ""
    counts = {verdict: sum(e.verdict == verdict for e in examples) for verdict in VERDICTS}
    legend = "".join(
        f"<li><i class={verdict}></i><b>{word}</b> {escape(text)}</li>"
        for verdict, (word, text) in VERDICTS.items()
        if counts[verdict]
    )
    method = f" ({result['method']})" if result else ""
    cards = "".join(_example(example, names) for example in examples)
    return (
        "<section><h2>Some held-out images</h2>"
        f"<ul class=legend>{legend}</ul><div class=images>{cards}</div>"
        "<p class=small>Below each image: its class and the proved lower bound of the margin to "
        f"the nearest other class{escape(method)}; above 0 is a proof. Where an attack succeeded, "
        "the changed image is beside the original.</p></section>"
    )


def _example(example: Example, names: Sequence[str]) -> str:
    def called(index: int) -> str:
        return escape(names[index]) if index < len(names) else str(index)

    pictures = _picture(example.image, f"held-out image of class {called(example.label)}")
    said = called(example.label)
    if example.verdict == "wrong":
        said += f" → {called(example.predicted)}"
    if example.attacked is not None and example.attacked_as is not None:
        pictures += _picture(example.attacked, "the same image after the attack")
        said += f" → {called(example.attacked_as)}"
    word, _ = VERDICTS[example.verdict]
    return (
        f'<div class="image {example.verdict}"><div>{pictures}</div>'
        f"<p><b>{said}</b> {word}<br>"
        f"<span class=small>margin ≥ {example.margin:+.2f}</span></p></div>"
    )


def _picture(image: Tensor, text: str) -> str:
    from PIL import Image

    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().byte().numpy()
    array = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels[:3].transpose(1, 2, 0))
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="png")
    code = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{code}">'


def _reuse(folder: Path, config: Mapping[str, Any]) -> str:
    model = config.get("model", {})
    make = model.get("source", "model = ...  # the network that was trained")
    train = config.get("train", {})
    radius = f"eps={train.get('eps', 0.1)}"
    ball = f"LpBall(x, {radius}, p={train['norm']}" if "norm" in train else f"LinfBall(x, {radius}"
    shape = ", ".join(map(str, config.get("data", {}).get("image_shape", ())))
    code = f"""import torch
import boundgraph as bg

{make}
state = torch.load("{folder / "checkpoint.pt"}", weights_only=True)
model.load_state_dict(state["weights"])
model.eval()

x = torch.rand(1, {shape})  # images in [0, 1]
bounds = bg.bound(model, method="mix")(bg.{ball}, clip=(0.0, 1.0)))"""
    shell = f"boundgraph evaluate {folder}"
    return (
        f"<section><h2>Use the weights</h2><pre>{escape(code)}</pre>"
        f"<pre>{escape(shell)}</pre></section>"
    )


def _settings(config: Mapping[str, Any]) -> str:
    groups = []
    for part, heading in (
        ("train", "Settings"),
        ("data", "Data"),
        ("model", "Model"),
        ("versions", "Versions"),
    ):
        rows = "".join(
            f"<tr><th>{escape(key)}</th><td>{escape(_value(value))}</td></tr>"
            for key, value in _flat(config.get(part) or {})
            if key not in ("source", "summary")
        )
        if rows:
            groups.append(f"<div><h3>{heading}</h3><table>{rows}</table></div>")
    command = config.get("command")
    shown_command = f"<pre>{escape(command)}</pre>" if command else ""
    return (
        f"<section><h2>How it was made</h2>{shown_command}"
        f"<div class=settings>{''.join(groups)}</div></section>"
    )


def _flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in data.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def _value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
