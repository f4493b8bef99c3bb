"""The layers, the packages and the sizes of the tree are what docs/design.md says."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "boundgraph": ROOT / "boundgraph",
    "boundgraph.passes": ROOT / "passes",
    "boundgraph.frontends": ROOT / "frontends",
    "boundgraph.cli": ROOT / "cli",
}
# What a part may import of ours, itself aside. A part is a package, or a module of the root.
BASE = {"errors", "source"}
IR = BASE | {"ir"}
CORE = IR | {"domains", "relaxations", "ops"}
LOWER = CORE | {"runtime", "passes", "frontends", "compiler", "fingerprint", "options", "pipeline"}
LOWER |= {"planning", "parameter_regions"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": {"source"},
    "source": set(),
    "fingerprint": {"ops"},
    "ir": BASE,
    "domains": {"errors"},
    "relaxations": {"domains"},
    "ops": IR | {"domains", "relaxations"},
    "runtime": CORE,
    "planning": CORE,
    "passes": CORE | {"planning"},
    "frontends": CORE,
    "options": BASE | {"domains"},
    "pipeline": CORE | {"passes", "options", "planning"},
    "parameter_regions": CORE | {"frontends", "passes", "runtime"},
    "compiler": LOWER,
    "linearize": LOWER,
    "data": BASE | {"domains"},
    "training": LOWER | {"data"},
    "attacks": LOWER | {"data"},
    "verification": LOWER | {"attacks", "data"},
    "accuracy": set(),
    "evaluation": LOWER | {"accuracy", "attacks", "data", "training"},
    "testing": LOWER,
    "gpu": LOWER | {"training"},
}
# The command line and the facade see everything.
FREE = {"cli", "__init__", "__main__"}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module's full name and file."""
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts
            yield ".".join((package, *parts)), path


def part_of(name: str) -> str:
    return name.split(".")[1] if "." in name else "__init__"


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Modules of ours that a file imports at run time, with the line."""
    tree = ast.parse(path.read_text())
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            skipped.update(id(inner) for inner in ast.walk(node))
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module == "boundgraph":
                # `from boundgraph import ops` names a part; anything else is the facade.
                for alias in node.names:
                    yield f"boundgraph.{alias.name}", node.lineno
            else:
                yield node.module, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "relative", node.lineno


def test_layers() -> None:
    wrong = []
    for name, path in modules():
        part = part_of(name)
        for target, line in imports(path):
            where = f"{path.relative_to(ROOT)}:{line}"
            if target == "relative":
                wrong.append(f"{where}: a relative import hides the layer")
            if not target.startswith("boundgraph") or part in FREE:
                continue
            other = part_of(target)
            if part not in MAY_IMPORT:
                wrong.append(f"{where}: {part} is not in the table of layers")
            elif other != part and other not in MAY_IMPORT[part]:
                wrong.append(f"{where}: {part} imports {other}")
    assert wrong == []


def test_nothing_inside_imports_the_facade() -> None:
    parts = {*MAY_IMPORT, *FREE}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for name, path in modules()
        if part_of(name) not in FREE
        for target, line in imports(path)
        if target == "boundgraph"
        or (target.startswith("boundgraph.") and part_of(target) not in parts)
    ]
    assert wrong == []


def test_the_old_folder_names_are_not_importable_parts() -> None:
    """`import passes` would load a second copy of the package beside `boundgraph.passes`."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for _, path in modules()
        for target, line in imports(path)
        if target.split(".")[0] in ("passes", "frontends", "cli")
    ]
    assert wrong == []


def test_packages_are_listed() -> None:
    """A subpackage that the list lacks works here and is absent from the wheel."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        setuptools = tomllib.load(file)["tool"]["setuptools"]
    on_disk = set()
    for package, folder in FOLDERS.items():
        for init in folder.rglob("__init__.py"):
            inner = init.parent.relative_to(folder).parts
            on_disk.add(".".join((package, *inner)))
    assert set(setuptools["packages"]) == on_disk
    assert setuptools["package-dir"] == {
        name: folder.name for name, folder in FOLDERS.items() if name != "boundgraph"
    }


@pytest.mark.parametrize("name", [name for name, _ in modules()])
def test_every_module_imports(name: str) -> None:
    importlib.import_module(name.removesuffix(".__init__"))


def test_all_modules_are_found_by_a_walk() -> None:
    import boundgraph

    found = {info.name for info in pkgutil.walk_packages(boundgraph.__path__, "boundgraph.")}
    assert {name for name, _ in modules() if "." in name and "__init__" not in name} <= found | {
        f"{package}.{info.name}"
        for package, folder in FOLDERS.items()
        for info in pkgutil.iter_modules([str(folder)])
    } | {"boundgraph.passes", "boundgraph.frontends", "boundgraph.cli"}


def test_ops_are_imported_by_their_package() -> None:
    imported = {
        node.module.rsplit(".", 1)[-1] if node.module != "boundgraph.ops" else alias.name
        for node in ast.walk(ast.parse((ROOT / "boundgraph/ops/__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    files = {p.stem for p in (ROOT / "boundgraph/ops").glob("*.py") if not p.stem.startswith("_")}
    # `bounded` holds no ops but the rules of bounded programs.
    assert files - imported <= {"bounded"}


MOST_LINES, MOST_IN_A_FUNCTION = 700, 120


def test_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    """Files and functions stay small; what passes the aim of 400 and 60 lines is reported."""
    too_big, over = [], []
    for _, path in modules():
        text = path.read_text()
        sizes = [(len(text.splitlines()), 400, MOST_LINES, "")]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                # A command's signature is its documentation; the body is what is to be read.
                length = (node.end_lineno or node.lineno) - node.body[0].lineno + 1
                sizes.append((length, 60, MOST_IN_A_FUNCTION, f" {node.name}"))
        for length, aim, most, what in sizes:
            line = f"{path.relative_to(ROOT)}{what}: {length} lines"
            too_big += [line] * (length > most)
            over += [line] * (length > aim)
    with capsys.disabled():
        if over:
            print("\nover the aimed size:", *over, sep="\n  ")
    assert too_big == []


def test_no_star_imports() -> None:
    stars = [
        str(path)
        for _, path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    assert stars == []


def test_import_time() -> None:
    """Importing boundgraph adds under half a second to importing torch."""
    script = (
        "import time, torch; start = time.perf_counter(); import boundgraph; "
        "print(time.perf_counter() - start)"
    )
    best = min(
        float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                             check=True, cwd=ROOT / "tests").stdout)
        for _ in range(3)
    )  # fmt: skip
    assert best < 0.5


def test_import_leaves_heavy_modules_alone() -> None:
    script = "import sys, boundgraph; print([m for m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    for heavy in ("matplotlib", "torchvision", "tensorboard", "onnx", "torch._inductor"):
        assert f"'{heavy}'" not in done.stdout, f"import boundgraph loads {heavy}"
