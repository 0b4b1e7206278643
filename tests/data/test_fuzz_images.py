"""A thousand damaged images: each is decoded or refused, and none starts anything."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from mutations import Tries, mutated
from repquant.data.decoding import FORMATS, Crop, decode

MUTATIONS = 1000


def samples() -> list[bytes]:
    """One of each format, and of PNG and TIFF those with palettes, one bit, 16 bits and compression."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    ways = [(image, {"format": name}) for name in FORMATS]
    ways += [(image.convert(mode), {"format": name}) for name in ("PNG", "TIFF") for mode in ("P", "1", "I;16", "RGBA")]
    ways += [(image, {"format": "TIFF", "compression": kind}) for kind in ("tiff_lzw", "jpeg", "tiff_deflate")]
    ways += [(image.convert("CMYK"), {"format": "JPEG"}), (image, {"format": "JPEG", "progressive": True})]
    contents = []
    for each, how in ways:
        stream = io.BytesIO()
        each.save(stream, **how)
        contents.append(stream.getvalue())
    return contents


def middle(width: int, height: int) -> Crop:
    return Crop(width / 4, height / 4, width / 2, height / 2, 16)


@pytest.mark.slow
def test_damaged_images(record_property):
    dice, tries, contents = random.Random(0), Tries(), samples()
    record_property("counts", tries.counts)
    for _ in range(MUTATIONS):
        content, crop = mutated(dice.choice(contents), dice), dice.choice((None, middle))
        tries.read(lambda content=content, crop=crop: decode(content, "some.png", crop), "some.png")
    tries.require_none_failed()
    assert tries.counts["refusals"] > MUTATIONS / 10
