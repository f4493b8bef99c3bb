"""A data set in memory, checked once so that nothing after it has to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from boundgraph.errors import DataError


@dataclass(frozen=True)
class DataSet:
    """Images in [0, 1] with integer labels, split into a training and a held-out part.

    Args:
        name: how the data set is called in reports.
        x_train: float `[N, channels, height, width]`, every value in [0, 1].
        y_train: int64 `[N]`, labels 0 … classes − 1.
        x_test: float `[M, channels, height, width]`.
        y_test: int64 `[M]`.
        classes: number of classes.
        class_names: one name a class, empty where the classes have none.

    Raises:
        DataError: naming everything that is wrong with the arrays.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = [
            *_part_problems("train", self.x_train, self.y_train, self.classes),
            *_part_problems("test", self.x_test, self.y_test, self.classes),
        ]
        shapes = {tuple(x.shape[1:]) for x in (self.x_train, self.x_test) if x.dim() == 4}
        if len(shapes) == 2:
            problems.append(
                f"images of x_train are {tuple(self.x_train.shape[1:])} but those of x_test "
                f"{tuple(self.x_test.shape[1:])} (channels, height, width)"
            )
        if self.classes < 2:
            problems.append(f"classes is {self.classes}; a classifier needs at least 2")
        if self.class_names and len(self.class_names) != self.classes:
            problems.append(f"{len(self.class_names)} class names for {self.classes} classes")
        if problems:
            raise DataError(f"data set {self.name!r} cannot be used:\n  " + "\n  ".join(problems))

    @classmethod
    def from_loaders(
        cls,
        name: str,
        train: Iterable[tuple[Tensor, Tensor]],
        test: Iterable[tuple[Tensor, Tensor]],
        classes: int | None = None,
    ) -> DataSet:
        """Read two loaders of (images, labels) batches into memory, each once.

        Random augmentation in a loader is drawn once, too.

        Args:
            classes: number of classes; one more than the largest training label where None.

        Raises:
            DataError: a loader is empty or its batches do not fit together.
        """
        x_train, y_train = _collect("train", train)
        x_test, y_test = _collect("test", test)
        classes = int(y_train.max()) + 1 if classes is None else classes
        return cls(name, x_train, y_train, x_test, y_test, classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.x_train.shape[1:]
        return channels, height, width

    def summary(self) -> str:
        shape = "×".join(map(str, self.image_shape))
        return (
            f"{self.name}: {len(self.x_train):,} training and {len(self.x_test):,} held-out "
            f"images, {shape}, {self.classes} classes"
        )


def _collect(part: str, loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    batches = list(loader)
    if not batches:
        raise DataError(f"the {part} loader is empty: it gave no batch at all")
    try:
        images, labels = zip(*batches, strict=True)
        return torch.cat(images), torch.cat(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the {part} loader must give (images, labels) pairs of tensors that fit together: "
            f"{error}"
        ) from error


def _part_problems(part: str, x: Tensor, y: Tensor, classes: int) -> list[str]:
    """What is wrong with one part, in the words of the arrays' names."""
    problems = []
    if x.dim() != 4:
        problems.append(
            f"x_{part} has shape {tuple(x.shape)}; expected (N, channels, height, width)"
        )
    if y.dim() != 1:
        problems.append(f"y_{part} has shape {tuple(y.shape)}; expected (N,)")
    if x.dim() == 4 and y.dim() == 1 and len(x) != len(y):
        problems.append(f"x_{part} has {len(x)} images but y_{part} has {len(y)} labels")
    if x.numel() == 0 or y.numel() == 0:
        problems.append(f"the {part} part is empty")
        return problems
    if not x.dtype.is_floating_point:
        problems.append(f"x_{part} is {x.dtype}; expected floating point in [0, 1]")
    else:
        problems += _value_problems(f"x_{part}", x)
    if y.dtype != torch.int64:
        problems.append(f"y_{part} is {y.dtype}; expected torch.int64")
    elif bool((y < 0).any()) or bool((y >= classes).any()):
        first = int(((y < 0) | (y >= classes)).int().argmax())
        problems.append(
            f"labels of y_{part} are out of range: they must be 0 … {classes - 1}, found "
            f"{int(y.min())} … {int(y.max())} (first at index {first})"
        )
    return problems


def _value_problems(name: str, x: Tensor) -> list[str]:
    # One pass for the usual case: NaN makes both comparisons false.
    low, high = x.aminmax()
    if bool(low >= 0) and bool(high <= 1):
        return []
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        return [f"{name} has {bad:,} values that are NaN or infinite"]
    return [
        f"{name} has values in [{float(low):.4g}, {float(high):.4g}]; expected [0, 1] "
        "(put a normalisation into the model, so that eps keeps its unit)"
    ]
