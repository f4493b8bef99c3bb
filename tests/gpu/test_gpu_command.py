"""`boundgraph compile --gpu-report`: the table, and what it says where there can be none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from boundgraph.cli.main import main
from boundgraph.gpu import _inductor
from boundgraph.gpu.report import DISCLAIMER

MODEL = """
import torch
from torch import nn

model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
example_input = torch.rand(2, 1, 8, 8)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["compile", "model.py", *arguments])
    return int(ended.value.code or 0)


@pytest.mark.gpu_model
def test_the_table(folder, capsys):
    assert command("--gpu-report") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "library" in out
    assert "launches" in out
    assert DISCLAIMER in out
    assert (folder / "model.bgp").is_file()


@pytest.mark.gpu_model
def test_the_table_as_json(folder, capsys):
    assert command("--gpu-report", "--json") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["gpu"]
    assert found["launches"] == found["triton_kernels"] + found["library_calls"] > 0
    assert found["atomics"] == 0
    assert found["synchronisations"] == []
    assert found["note"] == DISCLAIMER


def test_an_unknown_torch_is_refused(folder, capsys, monkeypatch):
    monkeypatch.setattr(_inductor, "KNOWN", ("1.0",))
    assert command("--gpu-report") == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "knows torch 1.0; this is torch" in err
    assert "Traceback" not in err
    # Without the report the model compiles as ever.
    assert command() == 0
