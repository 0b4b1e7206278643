import base64
import io

import pytest
import torch
from PIL import Image

from repquant.data.thumbnails import SIDE, thumbnail, visible_pixels


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.mark.parametrize(
    ("size", "kind", "shown"),
    [
        ((28, 28), "PNG", (28, 28)),
        ((224, 160), "JPEG", (80, SIDE)),
        ((64, 64), "PNG", (64, 64)),
        ((3, 500), "JPEG", (112, 1)),
    ],
)
def test_small_pictures_keep_their_pixels_and_large_ones_are_reduced(size, kind, shown):
    pixels = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = opened(thumbnail(pixels))
    assert (image.format, image.size) == (kind, shown)
    assert thumbnail(pixels) == thumbnail(pixels.clone())
    if kind == "PNG":
        assert image.getpixel((2, 1)) == tuple(pixels[:, 1, 2].tolist())


def test_normalized_values_are_shown_from_the_darkest_to_the_brightest():
    shown = visible_pixels(torch.tensor([[[-1.0, 0.0], [1.0, 3.0]]]))
    assert shown.tolist() == [[[0, 64], [128, 255]]] * 3
    assert visible_pixels(torch.full((3, 2, 2), 7.0)).tolist() == [[[0, 0], [0, 0]]] * 3
    assert visible_pixels(torch.zeros(4, 2, 2)) is None
    assert visible_pixels(torch.zeros(3, 5)) is None
