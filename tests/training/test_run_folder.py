"""The parts of a run folder: metrics file, curves, report, reference networks."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from boundgraph.data import load
from boundgraph.errors import ConfigError, DataError
from boundgraph.training.figures import nice_ticks, save_png, shown, svg_panel
from boundgraph.training.metrics import MetricsFile, read_metrics
from boundgraph.training.networks import NETWORKS, make_network, network_for
from boundgraph.training.progress import duration, epoch_line
from boundgraph.training.report import Example, write_report
from boundgraph.training.run import RunFolder, open_run

RECORD = {
    "epoch": 1, "epochs": 2, "eps": 0.05, "alpha": 0.8, "loss": 1.5, "clean_loss": 1.0,
    "bound_loss": 2.0, "clean_accuracy": 0.5, "certified_accuracy": 0.25, "test_clean": 0.5,
    "test_certified": None,
}  # fmt: skip


def test_metrics_are_kept_up_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        for epoch in range(3):
            file.write({"epoch": epoch})
            assert len(read_metrics(path)) == epoch + 1
    with path.open("a") as half:
        half.write('{"epoch": 3')
    assert len(read_metrics(path)) == 3
    with MetricsFile(path, keep=2) as file:
        file.write({"epoch": 7})
    assert [record["epoch"] for record in read_metrics(path)] == [0, 1, 7]


def test_metrics_are_finite_numbers(tmp_path):
    with MetricsFile(tmp_path / "m.jsonl") as file, pytest.raises(ValueError, match="JSON"):
        file.write({"loss": float("nan")})


def test_damaged_metrics_are_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n[2]\n{"epoch": 3}\n')
    with pytest.raises(DataError, match="line 2"):
        read_metrics(path)


def test_figures(tmp_path):
    records = [RECORD, {**RECORD, "epoch": 2, "test_certified": 0.3}]
    panels = shown(records)
    assert [panel.title for panel in panels][:2] == ["Accuracy", "Loss"]
    for panel in panels:
        for some in (records, records[:1]):
            lines = tuple(line for p in shown(some) if p.title == panel.title for line in p.lines)
            root = ElementTree.fromstring(svg_panel(type(panel)(panel.title, lines), some))
            assert root.tag == "svg"
    assert save_png(tmp_path / "curves.png", records, "title")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not save_png(tmp_path / "none.png", [], "title")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0), (0, 0.0031), (1, 60), (-3, 1e6)])
def test_ticks_cover_the_range(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 9


def test_report_escapes_what_it_shows(tmp_path):
    data = load("digits")
    config = {
        "train": {"eps": 0.1, "recipe": {"name": "<b>"}},
        "data": {"name": "<script>", "summary": "a & b", "image_shape": [1, 8, 8]},
        "command": "boundgraph train <x>",
    }
    result = {"clean": 1.0, "attacked": 0.75, "certified": 0.5, "n": 4, "eps": 0.1, "method": "ibp"}
    image = data.x_test[0]
    examples = [
        Example(image, 0, 0, "certified", 1.0),
        Example(image.expand(3, 8, 8), 0, 0, "open", -1.0),
        Example(image, 0, 0, "attacked", -1.0, image, 1),
        Example(image, 0, 1, "wrong", -1.0),
    ]
    write_report(tmp_path / "r.html", config, [RECORD], result, examples, ["<i>", "two"])
    text = (tmp_path / "r.html").read_text()
    assert "<script" not in text
    assert "&lt;i&gt;" in text
    assert text.count("data:image/png;base64") == 5
    for figure in ("100.0%", "75.0%", "50.0%", "2 of 4"):
        assert figure in text
    write_report(tmp_path / "r.html", config, [], None)
    assert "not evaluated yet" in (tmp_path / "r.html").read_text()


def test_open_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = open_run(None, {"train": {}}), open_run(None, {"train": {}})
    assert first.path != second.path
    assert json.loads(first.config_path.read_text())["versions"]["torch"] == torch.__version__
    assert open_run(first.path, {"train": {}}) == first
    first.config_path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        first.config()
    with pytest.raises(ConfigError, match=r"no config\.json"):
        RunFolder(tmp_path).config()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 9, 11)])
def test_networks_take_any_image(name, shape):
    model = make_network(name, shape, 7, seed=1)
    assert model(torch.rand(2, *shape)).shape == (2, 7)
    again = make_network(name, shape, 7, seed=1)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_networks_refuse_what_they_cannot_take():
    with pytest.raises(ConfigError, match="unknown network 'huge'"):
        make_network("huge", (1, 8, 8), 10)
    with pytest.raises(ConfigError, match="too small"):
        make_network("small", (1, 3, 3), 10)
    assert network_for((1, 8, 8)) == "tiny"
    assert network_for((3, 32, 32)) == "small"


def test_lines_for_people():
    assert [duration(s) for s in (3.4, 75, 3700)] == ["3 s", "1 min 15", "1 h 01"]
    line = epoch_line(RECORD, 75)
    assert "50.0%" in line
    assert "1 min 15" in line
