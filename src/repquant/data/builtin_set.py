"""The set that ships with the package: 10,000 training and 10,000 test images of Fashion-MNIST.

Fashion-MNIST: Xiao, Rasul, Vollgraf, 2017, arXiv:1708.07747; MIT license, see builtin/LICENSE.fashion-mnist.
`scripts/make_builtin_set.py` makes the files.
"""

import gzip
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from repquant.data.decoding import ChooseCrop, cut

FOLDER = Path(__file__).parent / "builtin"
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class BuiltinSet:
    """One split of the built-in set, labeled, 28 x 28 grayscale images given as RGB."""

    classes: tuple[str, ...] = CLASSES

    def __init__(self, split: Literal["train", "val"]) -> None:
        self._images = read_idx(FOLDER / f"{split}-images.idx.gz")
        self._labels = read_idx(FOLDER / f"{split}-labels.idx.gz")
        assert len(self._images) == len(self._labels)

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int, choose_crop: ChooseCrop | None = None) -> Image.Image:
        """The image as RGB, or a crop of it."""
        image = Image.fromarray(self._images[index]).convert("RGB")
        return image if choose_crop is None else cut(image, choose_crop(*image.size))

    def label(self, index: int) -> int:
        """The index of the image's class in `classes`."""
        return int(self._labels[index])

    def name(self, index: int) -> str:
        """The position in the original file, five digits."""
        return f"{index:05d}"

    def read_bytes(self, index: int) -> bytes:
        """The 784 grayscale pixels, row by row."""
        return bytes(self._images[index])


def read_idx(file: Path) -> npt.NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes (the MNIST format: magic, sizes as big-endian int32, data)."""
    content = gzip.decompress(file.read_bytes())
    assert content[:3] == b"\x00\x00\x08", f"{file} is not an IDX file of unsigned bytes"
    dimensions = content[3]
    shape = np.frombuffer(content, dtype=">i4", count=dimensions, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)
