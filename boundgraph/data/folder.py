"""Images in folders, one folder a class (the layout of torchvision's ImageFolder)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from boundgraph.data.dataset import DataSet
from boundgraph.errors import DataError

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
)
TEST_FOLDERS = ("test", "val")
SHOWN = 5


def load_folder(root: Path) -> DataSet:
    """A data set from `ROOT/train/CLASS/*` and `ROOT/test/CLASS/*` (or `val`).

    All images must have one size. They are grey where every file is, otherwise RGB.

    Raises:
        DataError: for a missing part, classes that differ between the parts, unreadable
            files or images of several sizes.
    """
    train = root / "train"
    test = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if not train.is_dir() or test is None:
        raise DataError(
            f"folder {root} needs a folder 'train' and one of 'test' or 'val', each with one "
            "folder a class; it has "
            + (", ".join(sorted(p.name for p in root.iterdir())[:SHOWN]) or "nothing")
        )
    names = tuple(sorted(path.name for path in train.iterdir() if path.is_dir()))
    strange = sorted({path.name for path in test.iterdir() if path.is_dir()} - set(names))
    if strange:
        raise DataError(f"classes in {test} that {train} lacks: {', '.join(strange[:SHOWN])}")
    files = {part: _files(folder, names) for part, folder in (("train", train), ("test", test))}
    for folder, found in ((train, files["train"]), (test, files["test"])):
        if not found:
            raise DataError(f"folder {folder} is empty: it holds no images of any class")
    grey = _all_grey([path for found in files.values() for path, _ in found])
    x_train, y_train = _read(files["train"], grey)
    x_test, y_test = _read(files["test"], grey)
    return DataSet(root.name, x_train, y_train, x_test, y_test, len(names), names)


def _files(folder: Path, names: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Image files with their labels, in a fixed order."""
    return [
        (path, label)
        for label, name in enumerate(names)
        if (folder / name).is_dir()
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]


def _all_grey(paths: list[Path]) -> bool:
    """Whether every file is grey; also checks that all can be opened and agree in size."""
    from PIL import Image, UnidentifiedImageError

    unreadable: list[str] = []
    sizes: dict[tuple[int, int], Path] = {}
    grey = True
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.setdefault(image.size, path)
                grey = grey and image.mode in ("1", "L")
        except (OSError, UnidentifiedImageError) as error:
            unreadable.append(f"{path} ({error})")
    if unreadable:
        raise DataError(
            f"{len(unreadable)} image files cannot be read:\n  " + "\n  ".join(unreadable[:SHOWN])
        )
    if len(sizes) > 1:
        shown = [f"{w}×{h}, for example {path}" for (w, h), path in list(sizes.items())[:SHOWN]]
        raise DataError("images must have one size, found\n  " + "\n  ".join(shown))
    return grey


def _read(files: list[tuple[Path, int]], grey: bool) -> tuple[Tensor, Tensor]:
    from PIL import Image

    images = []
    for path, _ in files:
        try:
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("L" if grey else "RGB")))
        except OSError as error:
            raise DataError(f"image file {path} is damaged: {error}") from error
    x = torch.from_numpy(np.stack(images))
    x = x.unsqueeze(1) if grey else x.permute(0, 3, 1, 2)
    return x.float().div_(255).contiguous(), torch.tensor([label for _, label in files])
