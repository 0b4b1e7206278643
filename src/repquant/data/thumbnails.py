"""Small pictures of what a network sees, as text that a page can hold."""

import base64
import io

import torch
from PIL import Image
from torch import Tensor

SIDE = 112
"""Pixels of the longer side, at most."""

_LOSSLESS_SIDE = 64  # to which PNG is as small as JPEG
_QUALITY = 80


def thumbnail(pixels: Tensor) -> str:
    """Return uint8 pixels (3, H, W) as an image file of at most `SIDE` pixels a side, in base64.

    Small pictures are PNG and keep their pixels; the others are JPEG. The same pixels give the same text.
    """
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    if max(image.size) <= _LOSSLESS_SIDE:
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "JPEG", quality=_QUALITY)
    return base64.b64encode(file.getvalue()).decode("ascii")


def visible_pixels(image: Tensor) -> Tensor | None:
    """Return what a network sees (C, H, W), normalized somehow, as uint8 (3, H, W) from its darkest to its brightest.

    None where it is no image: C is neither 1 nor 3.
    """
    if image.dim() != 3 or image.shape[0] not in (1, 3) or not image.is_floating_point():
        return None
    low, high = image.amin(), image.amax()
    shares = (image - low) / (high - low).clamp_min(torch.finfo(image.dtype).tiny)
    return (255 * shares).round().to(torch.uint8).expand(3, -1, -1)
