"""A checkpoint is whole or it is refused, and a failed write leaves the old one."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from boundgraph.errors import CheckpointError
from boundgraph.training import checkpoint
from boundgraph.training.checkpoint import load_checkpoint, save_checkpoint


def state(value: float = 1.0) -> dict:
    model = torch.nn.Linear(4, 3)
    torch.nn.init.constant_(model.weight, value)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "epoch": 3,
        "config": {"eps": 0.1, "name": "x", "list": [1, 2], "pair": (1, None)},
    }


def test_round_trip(tmp_path):
    path = tmp_path / "checkpoint.pt"
    saved = state()
    save_checkpoint(path, saved)
    found = load_checkpoint(path)
    assert torch.equal(found["model"]["weight"], saved["model"]["weight"])
    assert found["config"] == saved["config"]
    assert torch.equal(
        found["optimizer"]["state"][0]["exp_avg"], saved["optimizer"]["state"][0]["exp_avg"]
    )
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_plain_torch_reads_it(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state())
    assert torch.load(path, weights_only=True)["epoch"] == 3


@pytest.mark.parametrize("length", [0, 1, 50, 1000, -1, -103, -200])
def test_truncated(tmp_path, length):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="truncated or was written by another program"):
        load_checkpoint(path)


def test_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state())
    data = path.read_bytes()
    for at in [*range(0, len(data), 97), *range(len(data) - 110, len(data))]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(CheckpointError, match="corrupt"):
            load_checkpoint(path)


def test_foreign_files(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"epoch": 1}, path)
    with pytest.raises(CheckpointError, match="corrupt"):
        load_checkpoint(path)
    save_checkpoint(path, {"format": "something else"})
    with pytest.raises(CheckpointError, match="'something else'"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path / "absent.pt")


@pytest.mark.parametrize("written", [0, 100])
def test_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch, written):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state(1.0))
    before = path.read_bytes()

    def full(target, data):
        target.write_bytes(data[:written])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_bytes", full)
    with pytest.raises(CheckpointError, match=r"disk is full.*previous checkpoint is untouched"):
        save_checkpoint(path, state(2.0))
    assert path.read_bytes() == before
    assert load_checkpoint(path)["epoch"] == 3
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_failure_without_an_old_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"No such file.*No earlier checkpoint"):
        save_checkpoint(tmp_path / "absent" / "checkpoint.pt", state())


def test_interrupt_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(target, data):
        target.write_bytes(data[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "checkpoint.pt", state())
    assert os.listdir(tmp_path) == []
