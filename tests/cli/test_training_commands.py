"""train, evaluate, attack on the real digits, in a few epochs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from boundgraph.cli._options import spare_threads

ARGUMENTS = ("--threads", 1, "--json")
TRAIN = ("train", "--epochs", 2, "--eps", 0.02, *ARGUMENTS)
FIELDS = {"clean", "attacked", "certified", "n", "eps", "method", "seconds", "run_dir"}


@pytest.fixture
def trained(run):
    done = run(*TRAIN, "--run-dir", "run")
    assert done.code == 0, done.err
    return done


def test_train_leaves_a_run_folder(trained, tmp_path):
    assert trained.json.keys() >= FIELDS
    assert trained.json["clean"] >= trained.json["attacked"] >= trained.json["certified"] > 0
    assert trained.json["n"] == 360
    assert len(trained.out.splitlines()) == 1
    for name in ("config.json", "metrics.jsonl", "checkpoint.pt", "report.html", "result.json"):
        assert (tmp_path / "run" / name).is_file()
    report = (tmp_path / "run" / "report.html").read_text()
    assert "data:image/png;base64" in report
    assert f"{trained.json['certified']:.1%}" in report
    for outside in ('src="http', "href=", "@import", "<script"):
        assert outside not in report


def test_evaluate_agrees_and_asserts(run, trained):
    done = run("evaluate", "run", *ARGUMENTS)
    assert done.code == 0, done.err
    assert done.json.keys() >= FIELDS
    for field in ("clean", "attacked", "certified", "n", "eps", "method"):
        assert done.json[field] == trained.json[field]
    assert run("evaluate", "run", "--limit", 50, "--assert-certified", 0.01).code == 0
    assert run("evaluate", "run", "--limit", 50, "--assert-certified", 1.01).code == 1
    tighter = run("evaluate", "run", "--method", "ibp,crown", "--limit", 100, *ARGUMENTS)
    plain = run("evaluate", "run", "--limit", 100, *ARGUMENTS)
    assert tighter.json["certified"] >= plain.json["certified"]
    assert tighter.json["method"] == "ibp+crown"


def test_attack(run, trained):
    done = run("attack", "run", "--kind", "both", "--limit", 40, "--steps", 5, *ARGUMENTS)
    assert done.code == 0, done.err
    assert done.json["attacks"].keys() == {"pgd", "interval"}
    assert done.json["attacks"]["pgd"]["n"] == 40
    assert "still correct" in run("attack", "run", "--limit", 20, "--steps", 2).out


def test_finished_run_is_evaluated_again(run, trained):
    again = run(*TRAIN, "--run-dir", "run")
    assert again.json["certified"] == trained.json["certified"]
    assert again.json["seconds"] == pytest.approx(trained.json["seconds"])


def test_other_settings_are_refused(run, trained):
    done = run("train", "--epochs", 2, "--eps", 0.03, "--run-dir", "run", "--json")
    assert done.code == 2
    assert "train.eps: 0.02 there, 0.03 now" in done.json["message"]


def test_own_model_and_own_data(run, tmp_path, model_file):
    import numpy as np

    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (200, 8, 8, 1), dtype=np.uint8)
    y = (x.reshape(200, -1).mean(1) > 127).astype(np.int64)
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x[:50], y_test=y[:50])
    text = model_file.read_text().replace("12, 10", "12, 2")
    (tmp_path / "net.py").write_text(text.replace("model =", "def f():\n    return"))
    done = run(
        "train",
        "net.py:f",
        "--data",
        "mine.npz",
        "--epochs",
        1,
        "--eps",
        0.01,
        "--run-dir",
        "run",
        *ARGUMENTS,
    )
    assert done.code == 0, done.err
    assert done.json["n"] == 50
    assert run("evaluate", "run", *ARGUMENTS).json["clean"] == done.json["clean"]
    plain = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["weights"]
    torch.save(plain, tmp_path / "plain.pt")
    for weights in ("run/checkpoint.pt", "plain.pt"):
        other = run(
            "evaluate",
            "net.py:f",
            "--weights",
            weights,
            "--data",
            "mine.npz",
            "--eps",
            0.01,
            *ARGUMENTS,
        )
        assert other.json["certified"] == done.json["certified"]


def test_ctrl_c_saves_and_the_command_continues(run, tmp_path):
    command = [
        sys.executable,
        "-m",
        "boundgraph.cli.main",
        "train",
        "--epochs",
        "30",
        "--eps",
        "0.02",
        "--threads",
        "1",
        "--run-dir",
        "run",
        "--json",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None and not (metrics.is_file() and metrics.read_text()):
            pass
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert process.returncode == 130
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert 0 < state["epoch"] < 30
    lines = metrics.read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, state["epoch"] + 1))


def test_several_processes_need_a_folder(run, monkeypatch):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    done = run("train", "--json")
    assert done.code == 2
    assert "--run-dir" in done.err


def test_small_steps_are_not_shared_between_threads(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    spare_threads(nn.Linear(64, 10), (1, 8, 8))
    assert chosen == [1]
    spare_threads(nn.Linear(784, 10), (1, 28, 28))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    spare_threads(nn.Linear(64, 10), (1, 8, 8))
    assert chosen == [1]
