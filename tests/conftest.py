"""Settings for every test, the golden files, and a guard against two checkouts in one."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
FOLDERS = {
    "boundgraph": ROOT / "boundgraph",
    "boundgraph.passes": ROOT / "passes",
    "boundgraph.frontends": ROOT / "frontends",
    "boundgraph.cli": ROOT / "cli",
}

# The same examples in every run: a failure in CI is a failure here. Nightly runs explore.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files")


def pytest_sessionstart(session: pytest.Session) -> None:
    torch.set_num_threads(1)
    for name, folder in FOLDERS.items():
        found = Path(importlib.import_module(name).__path__[0]).resolve()
        if found != folder:
            raise pytest.UsageError(
                f"{name} is imported from {found}, the tests are in {ROOT}: two checkouts share "
                "one environment. Run `pip install -e .` in this checkout."
            )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "nightly" in (config.option.markexpr or ""):
        return
    nightly = [item for item in items if item.get_closest_marker("nightly")]
    if nightly:
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with `tests/golden/NAME`, or rewrite it under `--update-golden`."""

    def check(name: str, text: str) -> None:
        path, text = GOLDEN / name, text.rstrip() + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"no golden file {path}; create it with pytest --update-golden"
        assert text == path.read_text(), f"{name} changed; if intended: pytest --update-golden"

    return check
