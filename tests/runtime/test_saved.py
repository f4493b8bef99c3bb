"""Programs saved to a file give the same bounds when loaded, and bad files are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import boundgraph as bg
from boundgraph.errors import CheckpointError


def small_model() -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 2, 3, padding=1)
    layers = (conv, nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    return nn.Sequential(*layers).eval()


REGION = bg.LinfBall(torch.rand(2, 1, 4, 4), eps=0.05)
LABELS = torch.tensor([0, 2])


@pytest.mark.parametrize("method", ["ibp", "symbolic", "mix", "crown-ibp", "crown", "alpha-crown"])
def test_round_trip(method: str, tmp_path: Path) -> None:
    program = bg.compile(small_model(), REGION, method=method, spec=bg.Margin(classes=3))
    program.save(tmp_path / "net.bgp")
    loaded = bg.load(tmp_path / "net.bgp")
    assert str(loaded.ir) == str(program.ir)
    assert (loaded.method, loaded.spec) == (method, program.spec)
    expected, found = program(REGION, labels=LABELS), loaded(REGION, labels=LABELS)
    assert torch.equal(expected.lower, found.lower)
    assert torch.equal(expected.upper, found.upper)


def test_specs_outputs_and_constants(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
            return {"a": self.fc(x) + torch.tensor([1.0, 2.0]), "b": (x * y, y)}

    x, y = bg.LinfBall(torch.zeros(2, 3), 0.1), torch.ones(2, 3)
    program = bg.compile(Two(), x, y)
    program.save(tmp_path / "two.bgp")
    found, expected = bg.load(tmp_path / "two.bgp")(x, y), program(x, y)
    assert torch.equal(found.lower["a"], expected.lower["a"])
    assert torch.equal(found.upper["b"][0], expected.upper["b"][0])
    spec = bg.LinearSpec(torch.randn(2, 3), torch.randn(2))
    program = bg.compile(small_model(), REGION, spec=spec)
    program.save(tmp_path / "spec.bgp")
    loaded = bg.load(tmp_path / "spec.bgp")
    assert torch.equal(loaded(REGION).lower, program(REGION).lower)


def test_loaded_tensors_train(tmp_path: Path) -> None:
    program = bg.compile(small_model(), REGION)
    program.save(tmp_path / "net.bgp")
    loaded = bg.load(tmp_path / "net.bgp")
    assert {n for n, _ in loaded.model.named_parameters()} == {
        n for n, _ in program.model.named_parameters()
    }
    loaded(REGION).upper.sum().backward()
    assert all(p.grad is not None for p in loaded.model.parameters())


def test_file_is_safe_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "net.bgp"
    program = bg.compile(small_model(), REGION)
    program.save(path)
    torch.load(path, weights_only=True)
    program.save(path)
    assert os.listdir(tmp_path) == ["net.bgp"]


def test_corrupt_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.bgp"
    bg.compile(small_model(), REGION).save(path)
    whole = path.read_bytes()
    for position in (len(whole) // 3, len(whole) // 2):
        flipped = bytearray(whole)
        flipped[position] ^= 0x10
        path.write_bytes(bytes(flipped))
        with pytest.raises(CheckpointError):
            bg.load(path)
    for bad in (whole[: len(whole) // 2], b"", b"not a program"):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError):
            bg.load(path)
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not a"):
        bg.load(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        bg.load(tmp_path / "absent.bgp")


def test_altered_program_text_is_refused(tmp_path: Path) -> None:
    from boundgraph.runtime.archive import read_archive, write_archive
    from boundgraph.runtime.saved import KIND

    path = tmp_path / "net.bgp"
    bg.compile(small_model(), REGION).save(path)
    state = read_archive(path, KIND)
    for text in (state["text"].replace("interval.relu", "interval.nosuch"), "program("):
        write_archive(path, KIND, {**state, "text": text})
        with pytest.raises(CheckpointError, match="cannot run"):
            bg.load(path)
    wrong = {**state["tensors"], "0.weight": torch.ones(1)}
    write_archive(path, KIND, {**state, "tensors": wrong})
    with pytest.raises(CheckpointError, match="shape"):
        bg.load(path)


def test_unwritable_place_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.bgp"
    program = bg.compile(small_model(), REGION)
    program.save(path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        program.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["net.bgp"]
    with pytest.raises(CheckpointError, match="could not be written"):
        program.save(tmp_path / "no" / "such" / "folder.bgp")
