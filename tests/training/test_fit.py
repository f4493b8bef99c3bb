"""Training runs: what they leave behind, how they stop and how they go on."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from boundgraph.data import DataSet, load
from boundgraph.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NonFiniteError,
    SpecError,
    UnsupportedError,
)
from boundgraph.training import checkpoint
from boundgraph.training.fit import fit
from boundgraph.training.metrics import read_metrics
from boundgraph.training.recipes import Recipe
from boundgraph.training.schedules import Constant

RECIPE = Recipe(epochs=3, batch_size=16, subset=4, lr=Constant(1e-2), ema=0.9, ema_start=0.3)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data(count: int = 96) -> DataSet:
    digits = load("digits")
    return DataSet(
        "few digits",
        digits.x_train[:count],
        digits.y_train[:count],
        digits.x_test[:40],
        digits.y_test[:40],
        10,
    )


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_learns_and_leaves_a_run_folder(tmp_path):
    seen = []
    result = fit(
        network(),
        load("digits"),
        replace(RECIPE, epochs=4, batch_size=64, subset=16),
        eps=0.02,
        run_dir=tmp_path / "run",
        on_epoch=seen.append,
    )
    assert result.finished
    assert result.compiled == "eager"
    assert seen == result.records == read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert result.records[-1]["test_clean"] > 0.8
    assert result.records[-1]["test_clean"] >= result.records[-1]["test_certified"] > 0.5
    assert not result.model.training
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["train"]["eps"] == 0.02
    assert config["train"]["recipe"]["epochs"] == 4
    assert config["versions"]["torch"] == torch.__version__
    fresh = network()
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    fresh.load_state_dict(state["weights"])
    assert equal(weights(fresh), weights(result.model))
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()


def test_same_seed_same_weights_and_the_global_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = network()
    torch.set_rng_state(before)
    fit(first, data(), RECIPE, eps=0.1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    second, third = network(), network()
    fit(second, data(), RECIPE, eps=0.1)
    fit(third, data(), RECIPE, eps=0.1, seed=1)
    assert equal(weights(first), weights(second))
    assert not equal(weights(first), weights(third))


SCRIPT = """
import sys
import time
import torch
torch.set_num_threads(1)
sys.path.insert(0, {here!r})
from test_fit import RECIPE, data, network
from boundgraph.training import recipes
from boundgraph.training.fit import fit
from boundgraph.training import _trainer
from torch import nn

net = nn.Sequential(
    nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10)
)
slow = _trainer.Trainer._train_on
def train_on(self, x, y):
    slow(self, x, y)
    print("step", self.steps_done, flush=True)
    time.sleep({pause})
_trainer.Trainer._train_on = train_on
fit(net, data(), RECIPE, eps=0.05, run_dir={folder!r}, checkpoint_seconds=0.0, progress=False)
"""


def script(tmp_path: Path, folder: Path, pause: float) -> list[str]:
    path = tmp_path / f"script{pause}.py"
    here = str(Path(__file__).parent)
    path.write_text(SCRIPT.format(folder=str(folder), pause=pause, here=here))
    return [sys.executable, str(path)]


@pytest.mark.parametrize("kill_at", [2, 9, 12])
def test_killed_run_continues_to_the_same_weights(tmp_path, kill_at):
    """18 steps of 6 an epoch; killed within an epoch and at the end of one."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    subprocess.run(script(tmp_path, unbroken, 0.0), check=True, capture_output=True)
    command = script(tmp_path, broken, 0.2)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == f"step {kill_at}":
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    found = torch.load(broken / "checkpoint.pt", weights_only=True)
    assert found["epoch"] * 6 + found["batch"] in (kill_at - 1, kill_at)
    # A killed run may also leave half a line behind.
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 99, "lo')
    subprocess.run(script(tmp_path, broken, 0.0), check=True, capture_output=True)
    first = torch.load(unbroken / "checkpoint.pt", weights_only=True)
    second = torch.load(broken / "checkpoint.pt", weights_only=True)
    for part in ("model", "weights"):
        assert first[part].keys() == second[part].keys()
        for name, tensor in first[part].items():
            assert torch.equal(tensor, second[part][name]), name
    before, after = (read_metrics(folder / "metrics.jsonl") for folder in (unbroken, broken))
    assert len(before) == len(after) == 3
    for one, other in zip(before, after, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_ctrl_c_saves_and_says_so(tmp_path, capsys):
    handler = signal.getsignal(signal.SIGINT)  # ignored where pytest runs in the background
    unbroken = network()
    fit(unbroken, data(), RECIPE, eps=0.1)
    model = network()

    def stop(record):
        if record["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    folder = tmp_path / "run"
    result = fit(model, data(), RECIPE, eps=0.1, run_dir=folder, on_epoch=stop, progress=True)
    assert not result.finished
    assert len(result.records) == 2
    said = capsys.readouterr().err
    assert "Interrupted in epoch 3 of 3" in said
    assert f"--run-dir {folder}" in said
    assert signal.getsignal(signal.SIGINT) is handler
    again = fit(network(), data(), RECIPE, eps=0.1, run_dir=folder)
    assert again.finished
    assert again.continued_from == 2
    assert equal(weights(again.model), weights(unbroken))


def test_finished_run_is_not_trained_further(tmp_path):
    first = fit(network(), data(), RECIPE, eps=0.1, run_dir=tmp_path)
    second = fit(network(), data(), RECIPE, eps=0.1, run_dir=tmp_path)
    assert second.continued_from == 3
    assert second.records == first.records
    assert equal(weights(first.model), weights(second.model))
    third = fit(network(), data(), RECIPE, eps=0.1, run_dir=tmp_path, resume=False)
    assert third.continued_from == 0


def test_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    saved = checkpoint.write_bytes
    calls = []

    def fills_up(path, content):
        calls.append(path)
        if len(calls) > 2:
            path.write_bytes(content[:50])
            raise OSError(errno.ENOSPC, "No space left on device")
        saved(path, content)

    monkeypatch.setattr(checkpoint, "write_bytes", fills_up)
    with pytest.raises(CheckpointError, match="disk is full"):
        fit(network(), data(), RECIPE, eps=0.1, run_dir=tmp_path, checkpoint_seconds=0.0)
    monkeypatch.setattr(checkpoint, "write_bytes", saved)
    result = fit(network(), data(), RECIPE, eps=0.1, run_dir=tmp_path)
    unbroken = network()
    fit(unbroken, data(), RECIPE, eps=0.1)
    assert equal(weights(result.model), weights(unbroken))


def test_folder_with_another_run_is_refused(tmp_path):
    fit(network(), data(), replace(RECIPE, epochs=1), eps=0.1, run_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"train\.eps: 0\.1 there, 0\.2 now"):
        fit(network(), data(), replace(RECIPE, epochs=1), eps=0.2, run_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"train\.recipe\.epochs: 1 there, 2 now"):
        fit(network(), data(), replace(RECIPE, epochs=2), eps=0.1, run_dir=tmp_path)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ConfigError, match=r"model\.parameters"):
        fit(wide, data(), replace(RECIPE, epochs=1), eps=0.1, run_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"data\.fingerprint"):
        fit(network(), data(64), replace(RECIPE, epochs=1), eps=0.1, run_dir=tmp_path)


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"not a run folder.*thesis\.tex"):
        fit(network(), data(), RECIPE, eps=0.1, run_dir=tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        fit(network(), data(), RECIPE, eps=0.1, run_dir=tmp_path / "thesis.tex")


def test_corrupt_checkpoint_is_refused(tmp_path):
    fit(network(), data(), replace(RECIPE, epochs=1), eps=0.1, run_dir=tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(CheckpointError, match="corrupt"):
        fit(network(), data(), replace(RECIPE, epochs=1), eps=0.1, run_dir=tmp_path)


class TwoHeads(nn.Module):
    def forward(self, x):
        return x.flatten(1), x.flatten(1)


class Unsupported(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x):
        return self.last(torch.renorm(x.flatten(1), 2, 1, 1.0))


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (None, {"eps": -0.1}, ConfigError, "eps must be"),
        (None, {"eps": float("nan")}, ConfigError, "eps must be"),
        (None, {"seed": -1}, ConfigError, "seed"),
        (None, {"compile": "yes"}, ConfigError, "compile"),
        (None, {"validate": -1}, ConfigError, "validate"),
        (None, {"recipe": "magic"}, ConfigError, "magic"),
        (None, {"recipe": 3}, ConfigError, "recipe must be"),
        (None, {"recipe": Recipe(batch_size=1000)}, DataError, "batch of 1000"),
        (nn.Flatten(), {}, ConfigError, "no parameters"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), {}, DataError, "5 outputs.*10 classes"),
        (nn.Sequential(nn.Flatten(), nn.Linear(60, 10)), {}, DataError, "images of 1×8×8"),
        (nn.Sequential(nn.Conv2d(1, 10, 3)), {}, SpecError, "batch, classes"),
        (Unsupported(), {}, UnsupportedError, r"renorm[\s\S]*test_fit\.py"),
    ],
)
def test_bad_arguments(model, options, error, message):
    with pytest.raises(error, match=message):
        fit(model or network(), data(), **({"recipe": replace(RECIPE, init="default")} | options))


def test_divergence_is_an_error(tmp_path):
    with pytest.raises(NonFiniteError):
        fit(
            network(),
            data(),
            replace(RECIPE, optimizer="sgd", lr=Constant(1e30), clip_norm=None),
            eps=0.1,
            run_dir=tmp_path,
        )


def test_amp_trains_but_never_certifies():
    result = fit(network(), data(), replace(RECIPE, epochs=1), eps=0.05, amp=True)
    assert result.records[0]["test_certified"] >= 0.0
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ConfigError, match="under autocast is refused"),
    ):
        fit(network(), data(), replace(RECIPE, epochs=1), eps=0.05)


@pytest.mark.parametrize("name", ["mixtrain", "ibp", "pgd", "standard"])
def test_every_recipe_runs(name):
    from boundgraph.training.recipes import get_recipe

    recipe = get_recipe(name, epochs=1, batch_size=32)
    result = fit(network(), data(), recipe, eps=0.05)
    assert result.finished


def test_balanced_controller_is_given_gradient_norms():
    recipe = replace(RECIPE, controller="balanced")
    records = fit(network(), data(), recipe, eps=0.05).records
    assert records[0]["bound_grad_norm"] > 0
    assert len({record["alpha"] for record in records}) > 1


DISTRIBUTED = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, {here!r})
from test_fit import RECIPE, data, network
from boundgraph.training.fit import fit
from dataclasses import replace

result = fit(network(), data(), replace(RECIPE, epochs=2), eps=0.05, run_dir={folder!r})
total = sum(float(p.double().sum()) for p in result.model.parameters())
print("sum", total, len(result.records))
"""


def test_two_processes_agree(tmp_path):
    path = tmp_path / "script.py"
    folder = str(tmp_path / "run")
    path.write_text(DISTRIBUTED.format(here=str(Path(__file__).parent), folder=folder))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("sum")]
    assert len(said) == 2
    assert said[0] == said[1]
    assert len(read_metrics(Path(folder) / "metrics.jsonl")) == 2
