"""Find a data set by name or path and turn it into a `DataSet`."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boundgraph.data.dataset import DataSet
from boundgraph.data.folder import load_folder
from boundgraph.errors import DataError

DATA_VARIABLE = "BOUNDGRAPH_DATA"
KEYS = ("x_train", "y_train", "x_test", "y_test")
DOWNLOADABLE = ("mnist", "cifar10")
NAMES = ("digits", *DOWNLOADABLE)


def load(name_or_path: str | os.PathLike[str], *, download: bool = False) -> DataSet:
    """A data set by name or path.

    Looks for, in this order: the `digits` inside the package; a file `NAME.npz` in the
    folder that the environment variable BOUNDGRAPH_DATA names; `mnist` and `cifar10`
    where torchvision finds them in `cache_folder()`; a path to an `.npz` file with
    `x_train, y_train, x_test, y_test` (uint8 N×H×W×C, integer labels); a folder in
    ImageFolder layout (`train/CLASS/*.png`, and `test` or `val` likewise).

    Args:
        name_or_path: a name or a path.
        download: let torchvision fetch `mnist` or `cifar10` where it is not found.

    Raises:
        DataError: where nothing is found, or what is found is malformed.
    """
    text = os.fspath(name_or_path)
    if text == "digits":
        with resources.as_file(resources.files("boundgraph.data") / "digits.npz") as path:
            return load_npz(path, name="digits")
    path = Path(text)
    named = os.environ.get(DATA_VARIABLE)
    plain = path.name == text and not path.suffix
    if plain and named and (Path(named) / f"{text}.npz").is_file():
        return load_npz(Path(named) / f"{text}.npz", name=text)
    if text in DOWNLOADABLE:
        return _from_torchvision(text, download)
    if path.is_dir():
        return load_folder(path)
    if path.suffix == ".npz":
        return load_npz(path)
    raise DataError(
        f"no data set {text!r}: it is neither a name ({', '.join(NAMES)}), an .npz file nor a "
        f"folder{_searched(text, named) if plain else ''}"
    )


def _searched(text: str, named: str | None) -> str:
    if named is None:
        return f"; set {DATA_VARIABLE} to a folder that holds {text}.npz"
    return f", and {DATA_VARIABLE}={named} holds no {text}.npz"


def cache_folder() -> Path:
    """Where downloads go: BOUNDGRAPH_DATA where it is set, else the user's cache."""
    named = os.environ.get(DATA_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "boundgraph"


def load_npz(path: str | os.PathLike[str], name: str | None = None) -> DataSet:
    """A data set from an `.npz` file; see `load` for the arrays.

    Raises:
        DataError: for an unreadable file, missing arrays, wrong types or shapes, labels
            out of range or an empty part.
    """
    path = Path(path)
    name = name or path.stem
    if not path.is_file():
        raise DataError(f"data file {path} does not exist")
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise DataError(f"data file {path} holds a single array, not an .npz archive")
        with file:
            missing = [key for key in KEYS if key not in file.files]
            arrays = {key: file[key] for key in KEYS if key in file.files}
    except DataError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"data file {path} cannot be read: {error}; it must be a NumPy .npz archive without "
            "pickled objects"
        ) from error
    if missing:
        raise DataError(
            f"data file {path} lacks {', '.join(missing)}; it has "
            f"{', '.join(sorted(arrays)) or 'none of the expected arrays'} and needs "
            f"{', '.join(KEYS)}"
        )
    return from_arrays(name, arrays, where=f"data file {path}")


def from_arrays(
    name: str,
    arrays: dict[str, np.ndarray[Any, Any]],
    *,
    where: str = "",
    class_names: tuple[str, ...] = (),
) -> DataSet:
    """A data set from uint8 N×H×W×C images and integer labels under the names of `KEYS`."""
    problems = []
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.dtype != np.uint8:
            problems.append(f"x_{part} is {x.dtype}; expected uint8, 0 … 255")
        if x.ndim != 4:
            problems.append(f"x_{part} has shape {x.shape}; expected (N, height, width, channels)")
        if not np.issubdtype(y.dtype, np.integer):
            problems.append(f"y_{part} is {y.dtype}; expected integers")
        if y.ndim != 1:
            problems.append(f"y_{part} has shape {y.shape}; expected (N,)")
        if x.size == 0 or y.size == 0:
            problems.append(f"the {part} part is empty")
    if problems:
        raise DataError(f"{where or name} cannot be used:\n  " + "\n  ".join(problems))
    # Labels of the training part say how many classes there are.
    classes = len(class_names) or int(arrays["y_train"].max()) + 1
    if classes > len(arrays["y_train"]):
        raise DataError(
            f"{where or name}: labels of y_train go up to {classes - 1:,} with only "
            f"{len(arrays['y_train']):,} images; labels must be 0 … classes − 1"
        )
    return DataSet(
        name,
        _images(arrays["x_train"]),
        torch.from_numpy(arrays["y_train"].astype(np.int64)),
        _images(arrays["x_test"]),
        torch.from_numpy(arrays["y_test"].astype(np.int64)),
        classes,
        class_names,
    )


def _images(x: np.ndarray[Any, Any]) -> Tensor:
    """uint8 N×H×W×C to float N×C×H×W in [0, 1]."""
    return torch.from_numpy(x).permute(0, 3, 1, 2).float().div_(255).contiguous()


def _from_torchvision(name: str, download: bool) -> DataSet:
    import torchvision

    makers: dict[str, Callable[..., Any]] = {
        "mnist": torchvision.datasets.MNIST,
        "cifar10": torchvision.datasets.CIFAR10,
    }
    root = cache_folder()
    try:
        parts = [makers[name](str(root), train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        what = "could not be downloaded" if download else "is not on this machine"
        raise DataError(
            f"data set {name!r} {what} ({error}). Looked in {root} for {name}.npz and for "
            "torchvision's files. Pass --download (download=True) where there is a network, or "
            f"set {DATA_VARIABLE} to the folder that holds {name}.npz"
        ) from error
    arrays = {}
    for part, data in zip(("train", "test"), parts, strict=True):
        x = np.asarray(data.data)
        arrays[f"x_{part}"] = x if x.ndim == 4 else x[..., None]
        arrays[f"y_{part}"] = np.asarray(data.targets)
    return from_arrays(name, arrays, class_names=tuple(map(str, parts[0].classes)))
