"""`boundgraph verify`: exit codes, JSON and saved counterexamples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from boundgraph.cli.main import main

MODEL = """
import torch
from torch import nn

class Scale(nn.Module):
    def forward(self, x):
        return x * 2

model = Scale()
example_input = torch.tensor([[1.0, 0.0], [1.0, 0.5]])
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    with pytest.raises(SystemExit) as stopped:
        main(["verify", *arguments, "--json"])
    last = capsys.readouterr().out.splitlines()[-1]
    code = stopped.value.code
    assert isinstance(code, int | None)
    return code or 0, json.loads(last)


def test_proved_exits_with_0_and_labels_default_to_the_prediction(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, data = run(capsys, model, "--eps", "0.1", "--method", "ibp")
    assert code == 0 and data["proved"] and data["labels"] == [0, 0]
    assert [v["verdict"] for v in data["verdicts"]] == ["proved", "proved"]
    assert data["verdicts"][0]["method"] == "ibp"


def test_refuted_exits_with_1_and_saves_the_counterexample(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found" / "broken.pt"
    code, data = run(capsys, model, "--eps", "0.3", "--counterexample", str(out), "-m", "ibp")
    assert code == 1 and not data["proved"] and data["counterexample"] == str(out)
    assert [v["verdict"] for v in data["verdicts"]] == ["proved", "refuted"]
    (found,) = torch.load(out, weights_only=True)["counterexamples"]
    (x,) = found["inputs"]
    assert found["sample"] == 1 and x[0, 0] <= x[0, 1]
    assert torch.equal(found["output"], 2 * x)


def test_unknown_exits_with_1_and_says_why(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.json"
    one, other = ({"coefficients": {"0": c}, "offset": 2 * -c + 0.1} for c in (1, -1))
    spec.write_text(json.dumps({"any": [one, other]}))
    code, data = run(capsys, model, "--eps", "0.3", "--spec", str(spec))
    assert code == 1 and data["labels"] is None
    assert {v["cause"] for v in data["verdicts"]} == {"case-split"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--eps", "-1"],
        ["--eps", "0.1", "--method", "nope"],
        ["--eps", "0.1", "--label", "7"],
        ["--eps", "0.1", "--label", "0", "--labels", "0,1"],
        ["--eps", "0.1", "--labels", "a"],
        ["--eps", "0.1", "--labels", "0"],
        ["--eps", "0.1", "--spec", "missing.json"],
        ["--eps", "0.1", "--clip", "0,0.5"],
        ["--eps", "0.1", "--timeout", "-1"],
    ],
)
def test_usage_errors_exit_with_2(
    model: str, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    code, data = run(capsys, model, *arguments)
    assert code == 2 and data["message"]


def test_images_of_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        "import torch\nfrom torch import nn\ntorch.manual_seed(0)\n"
        "model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "example_input = torch.zeros(1, 1, 8, 8)\n"
    )
    arguments = ["--data", "digits", "--eps", "0", "--index", "5", "--limit", "2", "-m", "ibp"]
    code, data = run(capsys, str(path), *arguments)
    assert code in (0, 1) and len(data["verdicts"]) == 2
    assert all(v["verdict"] in ("proved", "refuted") for v in data["verdicts"])
    code, data = run(capsys, str(path), "--data", "digits", "--eps", "0", "--index", "99999")
    assert code == 2


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["verify", "--help"])
    assert not stopped.value.code
    assert "boundgraph verify model.py --eps 0.01" in capsys.readouterr().out


def test_regions_of_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "layer.py"
    path.write_text(
        "import torch\nmodel = torch.nn.Linear(2, 2, bias=False)\n"
        "model.weight.data = torch.eye(2)\nexample_input = torch.tensor([[1.0, 0.0]])\n"
    )
    for radius, proved in (("0.4", True), ("0.6", False)):
        given = (str(path), "--eps", "0", "-m", "ibp", "--weight", f"weight={radius}")
        code, data = run(capsys, *given)
        assert data["proved"] is proved and code == int(not proved)


@pytest.mark.parametrize("weight", ["weight", "weight=much", "bias=0.1"])
def test_bad_regions_of_weights(
    model: str, weight: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["verify", model, "--eps", "0.1", "--weight", weight])
    assert stopped.value.code == 2
    assert "--weight" in capsys.readouterr().err


def test_an_error_names_the_module_not_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "convolution.py"
    path.write_text(
        "import torch\nmodel = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten())\n"
        "example_input = torch.zeros(1, 1, 1, 2)\n"
    )
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(path), "--eps", "0", "--label", "0", "--weight", "0.weight=0.1"])
    assert stopped.value.code == 2
    assert "--> in module '0'\n" in capsys.readouterr().err
