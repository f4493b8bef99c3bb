"""Bad input ends with exit code 2, no traceback, and words that name place and way out."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from boundgraph.training.checkpoint import save_checkpoint

HEAD = "import torch\nfrom torch import nn\n"
GOOD = "example_input = torch.rand(2, 4)\n"
NET = "model = nn.Linear(4, 3)\n"

FILES = {
    "no model": (HEAD + GOOD, r"does not define 'model'.*it defines example_input"),
    "no example": (HEAD + NET, "does not define 'example_input'"),
    "neither": ("x = 1\n", "does not define 'model'(.|\n)*does not define 'example_input'"),
    "syntax": ("model = (\n", r"bad\.py:1"),
    "import": ("import no_such_module\n", r"ModuleNotFoundError(.|\n)*bad\.py:1"),
    "raises": (HEAD + "\n1 / 0\n", r"ZeroDivisionError(.|\n)*bad\.py:4"),
    "not a module": (HEAD + GOOD + "model = 3\n", r"'model'.*is int(.|\n)*bad\.py:4"),
    "a class": (HEAD + GOOD + "class model(nn.Module):\n    pass\n", "is the class model"),
    "wrong return": (HEAD + GOOD + "def model():\n    return 3\n", r"gives a int(.|\n)*bad\.py:4"),
    "needs arguments": (
        HEAD + GOOD + "def model(a):\n    return a\n",
        r"calling model\(\).*failed",
    ),
    "function raises": (
        HEAD + GOOD + "def model():\n    raise ValueError('why')\n",
        r"ValueError: why(.|\n)*bad\.py:5",
    ),
    "example no tensor": (HEAD + NET + "example_input = 'x'\n", r"'example_input'.*is str"),
    "example of mixed": (HEAD + NET + "example_input = (torch.rand(2, 4), 1)\n", "contains a int"),
    "example scalar": (HEAD + NET + "example_input = torch.tensor(1.0)\n", "batch dimension"),
    "example ints": (HEAD + NET + "example_input = torch.zeros(2, 4).int()\n", "floating point"),
    "shape mismatch": (
        HEAD + NET + "example_input = torch.rand(2, 5)\n",
        r"failed for example_input of shape \[2, 5\](.|\n)*bad\.py:4",
    ),
    "control flow": (
        HEAD
        + GOOD
        + "class Net(nn.Module):\n    def forward(self, x):\n"
        + "        if x.sum() > 0:\n            return x\n        return -x\nmodel = Net()\n",
        r"bad\.py:6",
    ),
    "unknown ops": (
        HEAD
        + GOOD
        + "class Net(nn.Module):\n    def forward(self, x):\n"
        + "        a = torch.logcumsumexp(x, 1)\n"
        + "        return a + torch.renorm(x, 2, 1, 1.0)\nmodel = Net()\n",
        r"logcumsumexp(.|\n)*bad\.py:6(.|\n)*renorm(.|\n)*bad\.py:7",
    ),
    "nan weights": (
        HEAD + GOOD + NET + "nn.init.constant_(model.weight, float('nan'))\n",
        "NaN or infinity",
    ),
    "nan input": (HEAD + NET + "example_input = torch.full((2, 4), float('nan'))\n", "NaN"),
}


@pytest.mark.parametrize("case", FILES)
def test_model_files(run, tmp_path, case):
    content, message = FILES[case]
    path = tmp_path / "bad.py"
    path.write_text(content)
    done = run("bounds", path)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert "error: " in done.err

    assert re.search(message, done.err), done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bounds", "absent.py"), "does not exist"),
        (("bounds", "."), "is a folder"),
        (("compile", "notes.txt"), "not a .py file"),
        (("bounds", "model.py:other"), "does not define 'other'"),
        (("bounds", "model.py", "--eps", "-1"), "eps"),
        (("bounds", "model.py", "--eps", "nan"), "eps"),
        (("bounds", "model.py", "--clip", "1,0"), "LOW < HIGH"),
        (("bounds", "model.py", "--clip", "x"), "LOW,HIGH or none"),
        (("bounds", "model.py", "--clip", "2,3"), "clip"),
        (("bounds", "model.py", "--method", "magic"), "ibp, symbolic, mix"),
        (("bounds", "model.py", "--label", "10"), "label"),
        (("train", "--eps", "-1"), "eps"),
        (("train", "--recipe", "magic"), "mixtrain"),
        (("train", "--epochs", "0"), "epochs"),
        (("train", "--batch", "5000"), "1437 images"),
        (("train", "--method", "magic"), "ibp, symbolic, mix"),
        (("train", "--data", "nowhere"), "no data set 'nowhere'"),
        (("train", "--data", "absent.npz"), "does not exist"),
        (("train", "huge"), "tiny, small, large"),
        (("train", "--threads", "0"), "at least 1"),
        (("train", "--device", "cuda:77"), "device"),
        (("train", "--seed", "-1"), "seed"),
        (("evaluate", "absent"), "neither a run folder nor a model file"),
        (("evaluate", "."), "has no config.json"),
        (("evaluate", "model.py", "--weights", "absent.pt"), "cannot be read"),
        (("evaluate", "model.py", "--weights", "notes.txt"), "neither a checkpoint nor"),
        (("evaluate", "model.py", "--weights", "other.pt"), "do not fit the model"),
        (("evaluate", "model.py", "--method", "magic"), "unknown method"),
        (("evaluate", "model.py", "--eps", "-1"), "eps"),
        (("attack", "model.py", "--loss", "magic"), "margin"),
        (("attack", "model.py", "--steps", "-1"), "steps"),
    ],
)
def test_arguments(run, tmp_path, model_file, arguments, message):
    (tmp_path / "notes.txt").write_text("hello")
    save_checkpoint(tmp_path / "other.pt", {"weights": torch.nn.Linear(2, 2).state_dict()})
    done = run(*arguments)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert message in " ".join(done.err.split())


def test_errors_are_json_too(run):
    done = run("bounds", "absent.py", "--json")
    assert done.code == 2
    assert done.json["error"] == "ModelFileError"
    assert "does not exist" in done.json["message"]


def test_debug_shows_the_traceback(tmp_path):
    from boundgraph.cli.main import main
    from boundgraph.errors import ModelFileError

    with pytest.raises(ModelFileError):
        main(["bounds", str(tmp_path / "absent.py"), "--debug"])


def test_our_own_bugs_are_owned(run, model_file, monkeypatch):
    from boundgraph import compiler

    def broken(*_, **__):
        raise KeyError("inner")

    monkeypatch.setattr(compiler, "compile", broken)
    done = run("bounds", model_file)
    assert done.code == 2
    assert done.err.startswith("bug in BoundGraph: KeyError")


def test_corrupt_checkpoint(run, tmp_path):
    assert run("train", "--epochs", 1, "--run-dir", "run", "--threads", 1, "--json").code == 0
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-500])
    for arguments in (("evaluate", "run"), ("train", "--epochs", 1, "--run-dir", "run")):
        done = run(*arguments)
        assert done.code == 2
        assert "corrupt" in done.err


def test_labels_out_of_range(run, tmp_path, model_file):
    x = np.zeros((300, 8, 8, 1), np.uint8)
    y = np.arange(300) % 12
    np.savez(tmp_path / "many.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    for command in ("train", "evaluate", "attack"):
        done = run(command, "model.py", "--data", "many.npz")
        assert done.code == 2
        assert "out of range" in " ".join(done.err.split())


def test_usage_errors(run):
    assert run("train", "--no-such-option").code == 2
    assert run("no-such-command").code == 2
    assert run("bounds").code == 2
