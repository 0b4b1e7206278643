import hashlib
from pathlib import Path

import numpy as np
import pytest

from repquant.data import builtin_set
from repquant.data.builtin_set import FOLDER, BuiltinSet, read_idx

# Of the uncompressed pixels of the original files (the first 10,000 images of each); compressed bytes depend on zlib.
PIXELS_SHA256 = {
    "train": "2929ae1c7b89e0ee6587bbe4911fd5f0a5dafe21ae6ed9b737173cbfe20c12c9",
    "val": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
}


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_are_the_original_ones(split):
    images = read_idx(FOLDER / f"{split}-images.idx.gz")
    assert images.shape == (10_000, 28, 28)
    assert hashlib.sha256(images.tobytes()).hexdigest() == PIXELS_SHA256[split]


@pytest.mark.parametrize(("split", "first_labels"), [("train", [9, 0, 0, 3, 0]), ("val", [9, 2, 1, 1, 6])])
def test_labels(split, first_labels):
    source = BuiltinSet(split)
    labels = [source.label(index) for index in range(len(source))]
    assert labels[:5] == first_labels
    assert len(source.classes) == 10
    assert np.bincount(labels).min() > 900


def test_image_is_rgb_of_the_stored_bytes():
    source = BuiltinSet("val")
    image = source.image(3)
    assert (image.mode, image.size) == ("RGB", (28, 28))
    assert image.getchannel(2).tobytes() == source.read_bytes(3)
    assert source.name(3) == "00003"


def test_files_are_small_without_a_time_stamp_and_licensed():
    files = sorted(FOLDER.glob("*.gz"))
    assert len(files) == 4
    assert sum(file.stat().st_size for file in files) < 9e6
    assert all(file.read_bytes()[4:8] == bytes(4) for file in files)
    license_text = (FOLDER / "LICENSE.fashion-mnist").read_text()
    assert "The MIT License" in license_text
    assert "Copyright (c) 2017 Zalando SE" in license_text
    assert FOLDER.is_relative_to(Path(builtin_set.__file__).parent)
