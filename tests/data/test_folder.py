"""Images in folders, and what can be wrong with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from boundgraph.data import load
from boundgraph.errors import DataError


def make(root, mode="RGB", size=(4, 3), test="test"):
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    for part, count in (("train", 3), (test, 2)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.full(shape, 40 * label + index, np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.mark.parametrize("test", ["test", "val"])
def test_layout(tmp_path, test):
    data = load(make(tmp_path / "pets", test=test))
    assert data.name == "pets"
    assert data.image_shape == (3, 3, 4)
    assert data.class_names == ("cat", "dog")
    assert data.y_train.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(data.x_test[3], torch.full((3, 3, 4), 41.0) / 255)


def test_grey_images_have_one_channel(tmp_path):
    assert load(make(tmp_path, mode="L")).image_shape == (1, 3, 4)


def test_one_colour_image_makes_all_rgb(tmp_path):
    make(tmp_path, mode="L")
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(tmp_path / "train" / "cat" / "rgb.png")
    assert load(tmp_path).image_shape == (3, 3, 4)


def test_missing_part(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match=r"needs a folder 'train'.*it has cat"):
        load(tmp_path)


def test_empty_part(tmp_path):
    make(tmp_path)
    for path in (tmp_path / "test").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="test is empty"):
        load(tmp_path)


def test_class_without_training_images(tmp_path):
    make(tmp_path)
    (tmp_path / "test" / "cow").mkdir()
    with pytest.raises(DataError, match="lacks: cow"):
        load(tmp_path)


def test_several_sizes(tmp_path):
    make(tmp_path)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "test" / "dog" / "big.png")
    with pytest.raises(DataError, match=r"one size[\s\S]*4×3[\s\S]*9×9.*big\.png"):
        load(tmp_path)


def test_unreadable_images_are_all_named(tmp_path):
    make(tmp_path)
    for name in ("a.png", "b.jpg"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2 image files[\s\S]*a\.png[\s\S]*b\.jpg"):
        load(tmp_path)


def test_truncated_image(tmp_path):
    make(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    path = tmp_path / "train" / "cat" / "cut.png"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"cut\.png"):
        load(tmp_path)
