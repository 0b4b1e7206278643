"""Parts of the training images: some held back to choose settings on, for which the validation split must not be looked
at, and some alone to train on.

Both are drawn as calibration images are, with seed 0, whatever the seed of the training: trainings that are compared
have the same images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from repquant.data.calibration import draw
from repquant.data.datasets import ImageSource
from repquant.data.decoding import ChooseCrop
from repquant.errors import InputError


@dataclass(frozen=True)
class Subset:
    """Some images of a source, in the order of `indices`."""

    source: ImageSource
    indices: Sequence[int]

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names by label, those of the source."""
        return self.source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int, choose_crop: ChooseCrop | None = None) -> Image.Image:
        """The image as RGB, or the chosen crop of it; raises UnreadableImageError."""
        return self.source.image(self.indices[index], choose_crop)

    def label(self, index: int) -> int | None:
        """The index of the image's class in `classes`."""
        return self.source.label(self.indices[index])

    def name(self, index: int) -> str:
        """The name in the source."""
        return self.source.name(self.indices[index])

    def read_bytes(self, index: int) -> bytes:
        """The content as it is stored; raises UnreadableImageError."""
        return self.source.read_bytes(self.indices[index])


def hold_back(source: ImageSource, count: int) -> tuple[Subset, Subset]:
    """Split a source into the images to train on and `count` held-back ones, with the same share of every class.

    Raises:
        InputError: all images would be held back.
    """
    if count >= len(source):
        raise InputError(
            f"`held_back_images={count}` was given, and there are {len(source)} training images; leave some"
        )
    held = set(draw(source, count))
    rest = [index for index in range(len(source)) if index not in held]
    return Subset(source, rest), Subset(source, sorted(held))


def take(source: ImageSource, count: int) -> Subset:
    """Return `count` images of a source, with the same share of every class; of more images, those of fewer are a part.

    Raises:
        InputError: there are fewer.
    """
    if count > len(source):
        raise InputError(
            f"`training_images={count}` was given, and there are {len(source)} images to train on; give at most that"
        )
    return Subset(source, sorted(draw(source, count)))
