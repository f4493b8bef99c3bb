"""Examples in docstrings, README and docs run."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import boundgraph

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "boundgraph": ROOT / "boundgraph",
    "boundgraph.passes": ROOT / "passes",
    "boundgraph.frontends": ROOT / "frontends",
    "boundgraph.cli": ROOT / "cli",
}
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(r"^```python(?P<flags>[^\n]*)\n(?P<code>.*?)^```", re.M | re.S)


def with_examples() -> list[str]:
    names = []
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            if ">>> " in path.read_text():
                parts = list(path.relative_to(folder).with_suffix("").parts)
                parts = parts[:-1] if parts[-1] == "__init__" else parts
                names.append(".".join((package, *parts)))
    return names


@pytest.mark.parametrize("name", with_examples())
def test_doctests(name: str) -> None:
    module = importlib.import_module(name)
    classes = {name: getattr(boundgraph, name) for name in dir(boundgraph) if name[0].isupper()}
    given = {"torch": torch, "nn": nn, **classes}
    result = doctest.testmod(module, extraglobs=given, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_snippets(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's blocks run in order, in one namespace; those of other pages compile.

    A block that opens with ```` ```python no-run ```` is a sketch and is only compiled.
    """
    if not path.exists():
        pytest.skip(f"{path.name} is not written yet")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "snippet"}
    for match in SNIPPET.finditer(path.read_text()):
        line = path.read_text()[: match.start()].count("\n") + 2
        code = compile("\n" * (line - 1) + match["code"], str(path), "exec")
        if path.name == "README.md" and "no-run" not in match["flags"]:
            exec(code, namespace)
