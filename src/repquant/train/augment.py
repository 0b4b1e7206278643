"""Random crops and flips of training images, each drawn from a generator that the caller seeds.

A crop is chosen from the size of the image, before the image is decoded: a crop that ends up small decodes faster.
"""

from collections.abc import Callable
from math import exp, log, sqrt

import numpy as np
from PIL import Image

from repquant.data.decoding import ChooseCrop, Crop

Load = Callable[[ChooseCrop], Image.Image]
"""Gives the chosen crop of one image, for example `ImageSource.image` of an index."""

_ATTEMPTS = 10
_ASPECT_RATIO = (3 / 4, 4 / 3)


def random_resized_crop(load: Load, size: int, random: np.random.Generator, least_area: float = 0.08) -> Image.Image:
    """Crop a share of the area, `least_area` to 1, at an aspect ratio of 3/4 to 4/3; resize to size x size, bilinear.

    torchvision's `RandomResizedCrop` (Szegedy et al., CVPR 2015), with its fallback: after ten boxes that do not fit,
    the largest central one at an allowed aspect ratio.
    """
    return load(lambda width, height: Crop(*_random_box(width, height, random, least_area), size))


def padded_crop(load: Load, size: int, random: np.random.Generator) -> Image.Image:
    """Resize the central square to size x size and shift it by up to an eighth each way; what comes in is black."""
    square = load(lambda width, height: _central_square(width, height, size))
    padding = size // 8
    left, top = (int(offset) for offset in random.integers(-padding, padding, size=2, endpoint=True))
    return square.crop((left, top, left + size, top + size))


def center_crop(load: Load, size: int, random: np.random.Generator, share: float = 1.0) -> Image.Image:
    """Resize to size x size what evaluation sees: the central square with a share of the shorter side."""
    del random  # the same crop in every epoch
    return load(lambda width, height: _central_square(width, height, size, share))


def random_flip(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Mirror left and right in half of the draws."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


CROPS: dict[str, Callable[[Load, int, np.random.Generator], Image.Image]] = {
    "random-resized-crop": random_resized_crop,
    "padded-crop": padded_crop,
    "center-crop": center_crop,
}
"""By the names in `recipe.AUGMENTATIONS`."""


def _central_square(width: int, height: int, side: int, share: float = 1.0) -> Crop:
    edge = min(width, height) * share
    return Crop((width - edge) / 2, (height - edge) / 2, edge, edge, side)


def _random_box(
    image_width: int, image_height: int, random: np.random.Generator, least_area: float
) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a crop, in pixels."""
    low, high = _ASPECT_RATIO
    for _ in range(_ATTEMPTS):
        area = image_width * image_height * random.uniform(least_area, 1)
        aspect_ratio = exp(random.uniform(log(low), log(high)))
        width, height = round(sqrt(area * aspect_ratio)), round(sqrt(area / aspect_ratio))
        if 0 < width <= image_width and 0 < height <= image_height:
            left = int(random.integers(0, image_width - width, endpoint=True))
            top = int(random.integers(0, image_height - height, endpoint=True))
            return left, top, width, height
    width = min(image_width, max(1, round(image_height * high)))
    height = min(image_height, max(1, round(image_width / low)))
    return (image_width - width) // 2, (image_height - height) // 2, width, height
