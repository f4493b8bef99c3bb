"""Load a model from a user's Python file, and say precisely what is wrong with the file."""

from __future__ import annotations

import ast
import importlib.util
import linecache
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from boundgraph.errors import Diagnostic, ModelFileError
from boundgraph.source import SourceSpan

if TYPE_CHECKING:
    from torch import Tensor, nn

EXAMPLE = "example_input"
ADVICE = (
    "a model file defines `model`, an nn.Module or a function without arguments that returns one, "
    "and `example_input`, a tensor (or a tuple of them) with a batch dimension, or a function that "
    "returns it"
)


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, with example inputs.

    Args:
        model: the user's module.
        inputs: one tensor per input of `forward`; empty where no example was asked for.
        path: the file.
        name: the name in the file.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    path: Path
    name: str


def load_model_file(spec: str, *, example: bool = True, run: bool = True) -> LoadedModel:
    """Load `MODEL.py` or `MODEL.py:NAME`.

    Args:
        spec: the file and, after a colon, the name of the model in it.
        example: also load `example_input`.
        run: try the model on the example.

    Raises:
        ModelFileError: the file is missing or cannot be run, or what it defines is unfit;
            names the line.
    """
    text, colon, name = spec.rpartition(":")
    if not colon or not text.endswith(".py"):
        text, name = spec, "model"
    path = Path(text)
    module = _execute(path)
    wanted = [name, *([EXAMPLE] if example else [])]
    missing = [w for w in wanted if not hasattr(module, w)]
    if missing:
        raise ModelFileError([_missing(path, module, item) for item in missing])
    model = _make_model(path, name, getattr(module, name))
    inputs = _make_inputs(path, getattr(module, EXAMPLE)) if example else ()
    if example and run:
        _try(path, name, model, inputs)
    return LoadedModel(model, inputs, path, name)


def _execute(path: Path) -> ModuleType:
    """Run the file as a module, with its own folder importable as a script's is."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(Diagnostic(f"model file {path} {what}", help=ADVICE))
    if path.suffix != ".py":
        raise ModelFileError(Diagnostic(f"model file {path} is not a .py file", help=ADVICE))
    name = f"boundgraph_model_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.path.insert(0, str(path.resolve().parent))
    # torch.export, pickle and dataclasses look a class's module up by name.
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except SyntaxError as error:
        span = SourceSpan(
            str(error.filename or path), error.lineno or 0, (error.text or "").strip()
        )
        raise ModelFileError(
            Diagnostic(f"model file {path} has a syntax error: {error.msg}", span)
        ) from error
    except Exception as error:
        raise _failure(path, f"running model file {path} failed", error) from error
    return module


def _missing(path: Path, module: ModuleType, name: str) -> Diagnostic:
    defined = sorted(key for key in vars(module) if not key.startswith("_"))
    return Diagnostic(
        f"model file {path} does not define {name!r}; it defines {', '.join(defined) or 'nothing'}",
        SourceSpan(str(path), 1, linecache.getline(str(path), 1).strip()),
        ADVICE,
    )


def _make_model(path: Path, name: str, value: Any) -> nn.Module:
    from torch import nn

    if not isinstance(value, nn.Module):
        value = _call(path, name, value, "an nn.Module or a function that returns one")
    if not isinstance(value, nn.Module):
        raise _unfit(path, name, f"gives a {type(value).__name__}, not an nn.Module")
    return value.eval()


def _make_inputs(path: Path, value: Any) -> tuple[Tensor, ...]:
    from torch import Tensor

    if not isinstance(value, Tensor | tuple | list):
        value = _call(path, EXAMPLE, value, "a tensor, a tuple of tensors or a function")
    inputs = (value,) if isinstance(value, Tensor) else value
    if not isinstance(inputs, tuple | list) or not inputs:
        raise _unfit(path, EXAMPLE, f"gives a {type(value).__name__}, not a tensor")
    for item in inputs:
        if not isinstance(item, Tensor):
            raise _unfit(path, EXAMPLE, f"contains a {type(item).__name__}, not only tensors")
        if item.dim() == 0:
            raise _unfit(path, EXAMPLE, "is a number; it needs a batch dimension")
    if not any(item.is_floating_point() for item in inputs):
        raise _unfit(path, EXAMPLE, f"has dtype {inputs[0].dtype}; a region needs floating point")
    return tuple(inputs)


def _call(path: Path, name: str, value: Any, wanted: str) -> Any:
    """Call a function of the file; classes are refused, as their instances need arguments."""
    if isinstance(value, type) or not callable(value):
        kind = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise _unfit(path, name, f"is {kind}; it must be {wanted}")
    function: Callable[[], Any] = value
    try:
        return function()
    except Exception as error:
        raise _failure(path, f"calling {name}() of model file {path} failed", error) from error


def _try(path: Path, name: str, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Run the model once, so that shape errors show with the user's own line."""
    import torch

    try:
        with torch.no_grad():
            model(*inputs)
    except Exception as error:
        shapes = ", ".join(str(list(item.shape)) for item in inputs)
        message = f"{name}(example_input) failed for example_input of shape {shapes}"
        raise _failure(path, message, error, _line_of(path, EXAMPLE)) from error


def _failure(
    path: Path, message: str, error: Exception, otherwise: SourceSpan | None = None
) -> ModelFileError:
    """An error in the user's code: the innermost of the file's own lines."""
    span = otherwise
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).resolve() == path.resolve():
            span = SourceSpan(frame.filename, frame.lineno or 0, frame.line or "")
    return ModelFileError(Diagnostic(f"{message}: {type(error).__name__}: {error}", span))


def _unfit(path: Path, name: str, problem: str) -> ModelFileError:
    message = f"{name!r} in model file {path} {problem}"
    return ModelFileError(Diagnostic(message, _line_of(path, name), ADVICE))


def _line_of(path: Path, name: str) -> SourceSpan:
    """Where the file defines a name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    line = 1
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = {target.id for target in targets if isinstance(target, ast.Name)}
        if name in named or getattr(node, "name", None) == name:
            line = node.lineno
    return SourceSpan(str(path), line, linecache.getline(str(path), line).strip())
