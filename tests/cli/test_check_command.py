"""`boundgraph verify --certificate` and `boundgraph check`: files, exit codes, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def test_a_certificate_is_written_checked_and_compared(run: Any, model_file: Path) -> None:
    done = run("verify", model_file, "--eps", 0.001, "--certificate", "proof.json", "--json")
    assert done.code == 0, done.err
    assert done.json["certificates"] == ["proof-0.json", "proof-1.json"]
    done = run("check", "proof-0.json")
    assert done.code == 0
    assert "accepted" in done.out
    done = run("check", "proof-1.json", model_file, "--json")
    assert (done.code, done.json["accepted"], done.json["model_compared"]) == (0, True, True)
    assert min(done.json["margins"]) > 0

    other = model_file.with_name("other.py")
    other.write_text(model_file.read_text().replace("manual_seed(0)", "manual_seed(1)"))
    done = run("check", "proof-0.json", other, "--json")
    assert (done.code, done.json["accepted"]) == (1, False)
    assert "hash" in done.json["reason"]

    document = json.loads(Path("proof-0.json").read_text())
    document["spec"]["offset"][0] = (0.25).hex()
    Path("forged.json").write_text(json.dumps(document))
    done = run("check", "forged.json")
    assert done.code == 1
    assert "rejected" in done.out


def test_errors_of_use_exit_with_2(run: Any, model_file: Path) -> None:
    assert run("check", "nothing.json").code == 2
    assert run("check").code == 2
    run("verify", model_file, "--eps", 0.001, "--certificate", "proof.json")
    done = run("check", "proof-0.json", "nothing.py")
    assert done.code == 2
    assert "does not exist" in done.err


def test_without_a_proof_there_is_no_certificate(run: Any, model_file: Path) -> None:
    done = run("verify", model_file, "--eps", 1.0, "--certificate", "proof.json", "--json")
    assert done.code == 1
    assert done.json["certificates"] == [None, None]
    assert not Path("proof-0.json").exists()
