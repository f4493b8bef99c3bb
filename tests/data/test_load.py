"""Every source gives the same kind of data set, and every malformation is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from boundgraph.data import DataSet, load
from boundgraph.errors import DataError


def arrays(**changes):
    generator = np.random.default_rng(0)
    made = {
        "x_train": generator.integers(0, 256, (12, 4, 5, 3), dtype=np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": generator.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8),
        "y_test": np.arange(6) % 3,
    }
    return {key: value for key, value in (made | changes).items() if value is not None}


def write(path: Path, **changes) -> Path:
    np.savez(path, **arrays(**changes))
    return path


def test_digits_are_inside_the_package():
    data = load("digits")
    assert data.image_shape == (1, 8, 8)
    assert data.classes == 10
    assert len(data.x_train) == 1437
    assert len(data.x_test) == 360
    levels = torch.cat([data.x_train, data.x_test]).unique()
    assert torch.equal(levels, torch.tensor([round(v * 255 / 16) / 255 for v in range(17)]))
    assert torch.equal(data.y_test.bincount(), torch.full((10,), 36))
    seen = {image.numpy().tobytes() for image in data.x_train}
    assert not any(image.numpy().tobytes() in seen for image in data.x_test)


def test_npz(tmp_path):
    data = load(write(tmp_path / "mine.npz"))
    assert data.name == "mine"
    assert data.image_shape == (3, 4, 5)
    assert data.classes == 3
    raw = arrays()["x_train"]
    assert torch.equal(data.x_train[1, 2], torch.from_numpy(raw[1, :, :, 2]).float() / 255)
    assert data.y_test.dtype == torch.int64


def test_named_folder_is_searched_first(tmp_path, monkeypatch):
    write(tmp_path / "mnist.npz")
    write(tmp_path / "other.npz")
    monkeypatch.setenv("BOUNDGRAPH_DATA", str(tmp_path))
    assert load("mnist").classes == 3
    assert load("other").name == "other"


def test_nothing_is_downloaded_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("BOUNDGRAPH_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"not on this machine.*--download"):
        load("cifar10")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["no-such-name", "no/such/file.npz", "no/such/folder"])
def test_unknown_name(name, monkeypatch):
    monkeypatch.delenv("BOUNDGRAPH_DATA", raising=False)
    with pytest.raises(DataError, match=r"no-such-name|no/such"):
        load(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None, "x_train": None}, "lacks x_train, y_test"),
        ({"x_train": np.zeros((12, 4, 5, 3), np.float32)}, "x_train is float32; expected uint8"),
        ({"x_test": np.zeros((6, 4, 5), np.uint8)}, r"x_test has shape \(6, 4, 5\)"),
        ({"x_test": np.zeros((6, 4, 4, 3), np.uint8)}, "images of x_train"),
        ({"y_train": np.zeros(12, np.float64)}, "y_train is float64; expected integers"),
        ({"y_train": np.zeros((12, 1), np.int64)}, r"y_train has shape \(12, 1\)"),
        ({"y_train": np.zeros(11, np.int64)}, "12 images but y_train has 11 labels"),
        ({"y_train": np.zeros(12, np.int64)}, "classes is 1"),
        ({"y_train": np.arange(12) - 1}, "labels of y_train are out of range.*index 0"),
        ({"y_test": np.array([0, 1, 2, 3, 0, 1])}, "labels of y_test.*first at index 3"),
        ({"y_train": np.arange(12) * 100}, "go up to 1,100 with only 12 images"),
        ({"x_train": np.zeros((0, 4, 5, 3), np.uint8)}, "the train part is empty"),
        ({"x_test": np.zeros((0, 4, 5, 3), np.uint8), "y_test": np.zeros(0, int)}, "test part is"),
        ({"y_train": np.array([{}] * 12)}, "cannot be read"),
    ],
)
def test_malformed_npz(tmp_path, changes, message):
    path = write(tmp_path / "bad.npz", **changes)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert "bad" in str(caught.value)


def test_all_problems_are_named_at_once(tmp_path):
    path = write(
        tmp_path / "bad.npz",
        x_train=np.zeros((12, 4, 5, 3), np.float32),
        y_test=np.zeros(6, np.float32),
    )
    with pytest.raises(DataError) as caught:
        load(path)
    assert "x_train is float32" in str(caught.value)
    assert "y_test is float32" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 truncated"])
def test_unreadable_npz(tmp_path, content):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.npz cannot be read"):
        load(path)


def test_truncated_npz(tmp_path):
    path = write(tmp_path / "cut.npz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="cannot be read"):
        load(path)


def test_single_array(tmp_path):
    path = tmp_path / "single.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="single array"):
        load(path)


def tensors(**changes):
    generator = torch.Generator().manual_seed(0)
    made = {
        "x_train": torch.rand(8, 1, 2, 2, generator=generator),
        "y_train": torch.arange(8) % 2,
        "x_test": torch.rand(4, 1, 2, 2, generator=generator),
        "y_test": torch.arange(4) % 2,
        "classes": 2,
    }
    return made | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": torch.full((4, 1, 2, 2), float("nan"))}, "x_test has 16 values that are NaN"),
        ({"x_train": torch.full((8, 1, 2, 2), float("inf"))}, "x_train has 32 values"),
        ({"x_train": torch.full((8, 1, 2, 2), 2.0)}, r"expected \[0, 1\]"),
        ({"x_train": torch.zeros(8, 1, 2, 2, dtype=torch.uint8)}, "expected floating point"),
        ({"x_train": torch.zeros(8, 4)}, "x_train has shape"),
        ({"y_train": torch.zeros(8)}, "y_train is torch.float32"),
        ({"y_train": torch.zeros(8, 1, dtype=torch.int64)}, "y_train has shape"),
        ({"y_test": torch.full((4,), 2)}, "labels of y_test are out of range"),
        ({"x_test": torch.zeros(0, 1, 2, 2), "y_test": torch.zeros(0).long()}, "empty"),
        ({"class_names": ("one",)}, "1 class names for 2 classes"),
    ],
)
def test_malformed_tensors(changes, message):
    with pytest.raises(DataError, match=message):
        DataSet("mine", **tensors(**changes))


def test_one_nan_among_many_is_found():
    x = tensors()["x_train"].clone()
    x[3, 0, 1, 1] = float("nan")
    with pytest.raises(DataError, match="x_train has 1 values that are NaN"):
        DataSet("mine", **tensors(x_train=x))


def test_loaders_are_read_into_memory():
    made = tensors()
    train = [(made["x_train"][:5], made["y_train"][:5]), (made["x_train"][5:], made["y_train"][5:])]
    data = DataSet.from_loaders("mine", train, [(made["x_test"], made["y_test"])])
    assert torch.equal(data.x_train, made["x_train"])
    assert torch.equal(data.y_test, made["y_test"])
    assert data.classes == 2


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([], "train loader is empty"),
        ([torch.zeros(3)], "pairs of tensors"),
        ([(1, 2)], "pairs of tensors"),
        (
            [(torch.zeros(1, 1, 2, 2), torch.zeros(1).long())] * 2
            + [(torch.zeros(1), torch.zeros(1))],
            "fit",
        ),
    ],
)
def test_bad_loaders(train, message):
    with pytest.raises(DataError, match=message):
        DataSet.from_loaders("mine", train, [(torch.zeros(1, 1, 2, 2), torch.zeros(1).long())])
