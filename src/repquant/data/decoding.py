"""An image file in, an RGB image out, or an error that names the file."""

import io
import warnings
from collections.abc import Callable
from math import ceil, floor
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from repquant.errors import InputError
from repquant.regular_files import read_regular

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded, whatever a file is called. Pillow knows more: for EPS it starts another program, Ghostscript."""

MOST_BYTES = 2**30
"""Of an image file; uncompressed, the largest image that Pillow accepts has a third of it."""

# Pillow's conversion of these to RGB keeps the 256 darkest levels and clips the rest to white.
_DEEP_MODES = ("I", "F")

# How many times smaller libjpeg can decode an image, through Pillow.
_JPEG_FACTORS = (1, 2, 4, 8)


class UnreadableImageError(InputError):
    """One image can't be used; `file` says which, `reason` why."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.file = file
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"can't read image {self.file}: {self.reason}; "
            "replace the file, or pass `skip_unreadable=True` to go on without it"
        )


class Crop(NamedTuple):
    """A box of an image, in pixels of the whole one, and the side of the square that it is resized to."""

    left: float
    top: float
    width: float
    height: float
    side: int


ChooseCrop = Callable[[int, int], Crop]
"""From the width and height of an image."""


def cut(image: Image.Image, crop: Crop, reduction: float = 1) -> Image.Image:
    """Crop and resize an image, bilinear with antialiasing; pixels wholly outside the box do not contribute.

    Args:
        image: the whole image, or a smaller version of it.
        crop: in pixels of the whole image.
        reduction: how many times smaller `image` is than the whole image.
    """
    left, right = crop.left / reduction, (crop.left + crop.width) / reduction
    top, bottom = crop.top / reduction, (crop.top + crop.height) / reduction
    x, y = floor(left), floor(top)
    box = image.crop((x, y, ceil(right), ceil(bottom)))
    inner = left - x, top - y, right - x, bottom - y
    return box.resize((crop.side, crop.side), Image.Resampling.BILINEAR, inner)


def decode(content: bytes, name: str, choose_crop: ChooseCrop | None = None) -> Image.Image:
    """Decode an image file to RGB as ImageNet training code does.

    Grayscale is repeated, palettes are looked up, CMYK is converted, alpha is dropped without compositing and an EXIF
    orientation is not applied (torchvision's `pil_loader`).

    Args:
        content: content of the file.
        name: what an error calls it.
        choose_crop: give this crop instead of the whole image. A JPEG file is then decoded at 1/2, 1/4 or 1/8 of its
            resolution where that leaves the box at least as large as the result, which saves up to half of the time;
            the pixels differ a little from those of a crop at full resolution.

    Raises:
        UnreadableImageError: the file is truncated, of none of `FORMATS`, so large that Pillow takes it for a
            decompression bomb, or has more than 8 bits a channel.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on metadata that is not used here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.mode.startswith(_DEEP_MODES):
                    raise UnreadableImageError(name, f"mode {image.mode} has more than 8 bits a channel")
                return image.convert("RGB") if choose_crop is None else _decode_crop(image, choose_crop)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError(name, f"not an image in a format that is read ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's readers raise almost anything on a damaged file
        raise UnreadableImageError(name, str(error) or type(error).__name__) from error


def _decode_crop(image: Image.Image, choose_crop: ChooseCrop) -> Image.Image:
    width, height = image.size
    crop = choose_crop(width, height)
    spare = min(crop.width, crop.height) / crop.side
    factor = max(factor for factor in _JPEG_FACTORS if factor <= max(spare, 1))
    drafted = image.draft(None, (width // factor, height // factor))  # does nothing to formats other than JPEG
    reduction = 1 if drafted is None else width / drafted[1][2]
    return cut(image.convert("RGB"), crop, reduction)


def read_bytes(file: Path) -> bytes:
    """The content of `file`; raises UnreadableImageError if it can't be read or is no regular file."""
    try:
        return read_regular(file, MOST_BYTES)
    except OSError as error:
        raise UnreadableImageError(str(file), str(error.strerror).lower()) from error
