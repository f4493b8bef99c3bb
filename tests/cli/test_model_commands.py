"""compile, bounds, show, ops: what they print, write and return."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import torch

COMMANDS = ("compile", "bounds", "show", "ops", "train", "evaluate", "attack")


def test_version_and_help(run):
    assert run("--version").out.startswith("boundgraph 0.")
    done = run("--help")
    assert done.code == 0
    assert all(command in done.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(run, command):
    done = run(command, "--help")
    assert done.code == 0
    assert f"$ boundgraph {command}" in done.out
    assert "--json" in done.out


def test_the_command_line_loads_fast():
    code = "import sys, boundgraph.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_compile(run, model_file):
    done = run("compile", model_file, "--method", "mix", "--margin")
    assert done.code == 0, done.err
    for said in ("captured by torch_fx", "fold-spec", "relax-", "arithmetic", "bg.load("):
        assert said in done.out
    assert (model_file.parent / "model.bgp").is_file()


def test_compile_json(run, model_file):
    done = run("compile", model_file, "--json", "-o", "other.bgp")
    assert len(done.out.splitlines()) == 1
    assert done.json["cost"]["bounds_flops"] > done.json["cost"]["model_flops"] > 0
    assert done.json["passes"][0]["name"] == "dce"
    assert (model_file.parent / "other.bgp").is_file()


def test_compile_prints_the_plan(run, model_file):
    done = run("compile", model_file, "--method", "auto", "--max-time", "5")
    assert done.code == 0, done.err
    for said in ("Plan (backward, batch 2)", "read by", "backward", "Considered", "Budget: 5 s"):
        assert said in done.out
    found = run("compile", model_file, "--method", "auto", "--json").json["plan"]
    assert found["schedule"] == "backward"
    assert found["estimated_seconds"] <= found["budget"]["seconds"] == 10
    assert found["measured_seconds"] > 0
    assert {option["name"] for option in found["considered"]} >= {"interval", "forward"}
    assert all(entry["measured_ms"] > 0 for entry in found["values"] if entry["flops"])


def test_a_budget_is_for_auto(run, model_file):
    done = run("compile", model_file, "--method", "ibp", "--max-time", "5")
    assert done.code == 2
    assert "max_time" in done.err


@pytest.mark.parametrize("method", ["ibp", "symbolic", "mix", "crown-ibp", "crown"])
def test_bounds(run, model_file, method):
    if method.startswith("crown"):
        done = run("bounds", model_file, "--eps", "0.01", "-m", method, "--json", "--label", 3)
    else:
        done = run("bounds", model_file, "--eps", "0.01", "-m", method, "--json")
    assert done.code == 0, done.err
    output = done.json["outputs"][0]
    lower, value = torch.tensor(output["lower"]), torch.tensor(output["value"])
    assert lower.shape == (2, 10)
    # Two float32 evaluations of the same sums, of at most 64 terms of about 1.
    assert bool((lower <= value + 64 * 2**-23).all())


def test_bounds_table(run, model_file):
    done = run("bounds", model_file, "--eps", "0.01", "--rows", 3)
    assert "lower" in done.out
    assert "17 more rows" in done.out


def test_bounds_assert_decides_the_exit_code(run, model_file):
    outputs = run("bounds", model_file, "--eps", 0, "--json").json["outputs"][0]["value"]
    best = torch.tensor(outputs[0]).argmax().item()
    path = model_file.with_name("single.py")
    path.write_text(model_file.read_text().replace("(2, 1, 8, 8)", "(1, 1, 8, 8)"))
    assert run("bounds", path, "--eps", 0, "--label", best, "--assert").code == 0
    done = run("bounds", path, "--eps", 5, "--label", best, "--assert", "--json")
    assert done.code == 1
    assert done.json["certified"] is False
    assert run("bounds", path, "--assert").code == 2


def test_show_text(run, model_file):
    done = run("show", model_file)
    assert done.out.count("// after ") >= 5
    assert "program(" in done.out
    one = run("show", model_file, "--pass", "relax-ibp")
    assert one.out.count("// after ") == 1
    assert "stage=bounded" in one.out
    wrong = run("show", model_file, "--pass", "magic")
    assert wrong.code == 2
    assert "the passes are dce" in wrong.err


def test_show_pictures(run, model_file):
    assert run("show", model_file, "-f", "dot").out.startswith("digraph")
    for format in ("svg", "graphml"):
        path = model_file.with_name(f"picture.{format}")
        assert run("show", model_file, "-f", format, "-o", path).code == 0
        ElementTree.fromstring(path.read_text())
    assert run("show", model_file, "-f", "graphml").code == 2
    assert run("show", model_file, "-f", "svg", "-o", "no/such/folder.svg").code == 2


def test_ops(run):
    done = run("ops", "--json")
    table = {row["op"]: row for row in done.json["ops"]}
    assert table["conv2d"]["rules"]["interval"]
    assert table["conv2d"]["holes"] == []
    assert done.json["holes"] == sum(bool(row["holes"]) for row in table.values())
    printed = run("ops").out
    assert "conv2d" in printed
    assert "hole" in printed
    assert len(run("ops", "--holes", "--json").json["ops"]) == done.json["holes"]


def test_compile_check_reports_without_writing(run, model_file):
    done = run("compile", "--check", model_file, "--method", "crown-ibp")
    assert done.code == 0, done.err
    assert "Every op has a rule for crown-ibp" in done.out
    assert not (model_file.parent / "model.bgp").exists()


def test_compile_check_lists_all_that_is_missing(run, tmp_path):
    path = tmp_path / "hopeless.py"
    path.write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def forward(self, x):\n        y = torch.fft.rfft(x).abs()\n"
        "        return y + torch.linalg.det(x.view(-1, 2, 2))[:, None]\n\n\n"
        "model = Net()\nexample_input = torch.zeros(1, 4)\n"
    )
    done = run("compile", "--check", path)
    assert done.code != 0
    assert "fft_rfft" in done.err and "det" in done.err and "hopeless.py" in done.err
