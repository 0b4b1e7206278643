"""The data layer on real photographs: the ten-class ImageNet subset."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from repquant.data.calibration import select
from repquant.data.datasets import open_split
from repquant.data.loading import Loader
from repquant.data.transforms import EvalTransform

pytestmark = pytest.mark.real_data


def test_counts_and_classes(imagenette):
    train, val = open_split(imagenette, "train"), open_split(imagenette, "val")
    assert (len(train), len(val)) == (9469, 3925)
    assert train.classes == val.classes
    assert len(val.classes) == 10
    assert (val.classes[0], val.classes[9]) == ("n01440764", "n03888257")  # tench, parachute
    assert {train.label(index) for index in range(len(train))} == set(range(10))
    assert all(val.name(index).startswith(val.classes[val.label(index)]) for index in range(len(val)))


def test_grayscale_photographs_decode(imagenette):
    source = open_split(imagenette, "val")
    gray = []
    for index in range(len(source)):
        with Image.open(imagenette / "val" / source.name(index)) as image:
            if image.mode == "L":
                gray.append(index)
    assert len(gray) > 10
    (batch,) = Loader(source, EvalTransform(image_size=160, mean=(0, 0, 0), std=(1, 1, 1)), len(gray), indices=gray)
    assert torch.equal(batch.images[:, 0], batch.images[:, 1])
    assert torch.equal(batch.images[:, 0], batch.images[:, 2])


def test_without_a_margin_a_square_photograph_is_resized_whole(imagenette):
    source = open_split(imagenette, "val")
    resized = np.asarray(source.image(0).resize((160, 160), Image.Resampling.BILINEAR))
    pixels = EvalTransform(image_size=160, crop_ratio=1.0)(source.image(0))
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), resized)


def test_calibration_subset(imagenette):
    source = open_split(imagenette, "train")
    subset = select(source, 512, seed=0)
    counts = Counter(source.label(index) for index in subset.indices)
    assert sorted(counts.values()) == [51] * 8 + [52] * 2
    assert subset.sha256 == "92a93f2992a884d45d56cc66220ab8babf69ac952904195925daea3b66ba664c"
