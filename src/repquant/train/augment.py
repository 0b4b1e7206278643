"""Random crops and flips of training images, each drawn from a generator that the caller seeds."""

from collections.abc import Callable
from math import exp, log, sqrt

import numpy as np
from PIL import Image, ImageOps

_ATTEMPTS = 10
_AREA = (0.08, 1.0)
_ASPECT_RATIO = (3 / 4, 4 / 3)


def random_resized_crop(image: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    """Crop 8 to 100 % of the area at an aspect ratio of 3/4 to 4/3 and resize it to size x size, bilinear.

    torchvision's `RandomResizedCrop` (Szegedy et al., CVPR 2015), with its fallback: after ten boxes that do not fit,
    the largest central one at an allowed aspect ratio.
    """
    left, top, width, height = _random_box(image.width, image.height, random)
    box = image.crop((left, top, left + width, top + height))
    return box.resize((size, size), Image.Resampling.BILINEAR)


def padded_crop(image: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    """Resize the central square to size x size and shift it by up to an eighth each way; what comes in is black."""
    square = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    padding = size // 8
    left, top = (int(offset) for offset in random.integers(-padding, padding, size=2, endpoint=True))
    return square.crop((left, top, left + size, top + size))


def random_flip(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Mirror left and right in half of the draws."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


CROPS: dict[str, Callable[[Image.Image, int, np.random.Generator], Image.Image]] = {
    "random-resized-crop": random_resized_crop,
    "padded-crop": padded_crop,
}
"""By the names in `recipe.AUGMENTATIONS`."""


def _random_box(image_width: int, image_height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a crop, in pixels."""
    low, high = _ASPECT_RATIO
    for _ in range(_ATTEMPTS):
        area = image_width * image_height * random.uniform(*_AREA)
        aspect_ratio = exp(random.uniform(log(low), log(high)))
        width, height = round(sqrt(area * aspect_ratio)), round(sqrt(area / aspect_ratio))
        if 0 < width <= image_width and 0 < height <= image_height:
            left = int(random.integers(0, image_width - width, endpoint=True))
            top = int(random.integers(0, image_height - height, endpoint=True))
            return left, top, width, height
    width = min(image_width, max(1, round(image_height * high)))
    height = min(image_height, max(1, round(image_width / low)))
    return (image_width - width) // 2, (image_height - height) // 2, width, height
