"""An image file in, an RGB image out, or an error that names the file."""

import io
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from repquant.errors import InputError

# Pillow's conversion of these to RGB keeps the 256 darkest levels and clips the rest to white.
_DEEP_MODES = ("I", "F")


class UnreadableImageError(InputError):
    """One image can't be used; `file` says which, `reason` why."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.file = file
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"can't read image {self.file}: {self.reason}; "
            "replace the file, or pass --skip-unreadable to go on without it"
        )


def decode(file: Path) -> Image.Image:
    """Decode `file` to RGB as ImageNet training code does.

    Grayscale is repeated, palettes are looked up, CMYK is converted, alpha is dropped without compositing and an EXIF
    orientation is not applied (torchvision's `pil_loader`).

    Raises:
        UnreadableImageError: the file is missing, truncated, not an image, so large that Pillow takes it for a
            decompression bomb, or has more than 8 bits a channel.
    """
    content = read_bytes(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on metadata that is not used here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                if image.mode.startswith(_DEEP_MODES):
                    raise UnreadableImageError(str(file), f"mode {image.mode} has more than 8 bits a channel")
                return image.convert("RGB")
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError(str(file), "not an image in a format that Pillow knows") from error
    except Exception as error:  # Pillow's readers raise almost anything on a damaged file
        raise UnreadableImageError(str(file), str(error) or type(error).__name__) from error


def read_bytes(file: Path) -> bytes:
    """The content of `file`; raises UnreadableImageError if it can't be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UnreadableImageError(str(file), str(error.strerror).lower()) from error
