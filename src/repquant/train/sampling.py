"""The images of an epoch. For training they are shuffled and augmented by seed, epoch and index alone.

No random state is carried along, so an epoch is the same in a resumed run and with any number of workers.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from repquant.data.datasets import ImageSource
from repquant.data.loading import Loader
from repquant.data.transforms import EvalTransform
from repquant.errors import InputError
from repquant.train.augment import CROPS, random_flip
from repquant.train.recipe import Recipe


class TrainingSet:
    """Labeled images as the batches of any epoch, all of the recipe's batch size.

    Args:
        source: where the images come from.
        recipe: says how they are augmented and seeded.
        workers: processes that decode; 0 decodes in this one.
        skip_unreadable: go on without images that can't be read; their batch is shorter.

    Attributes:
        steps: batches of an epoch. The images that do not fill another batch are left out, others in each epoch.
        skipped: name -> reason of the unreadable images met so far.

    Raises:
        InputError: the images have no labels or another number of classes than the recipe, or they do not fill one
            batch.
    """

    def __init__(self, source: ImageSource, recipe: Recipe, workers: int = 0, skip_unreadable: bool = False) -> None:
        _require_classes(source, recipe.num_classes, "training")
        self.steps = len(source) // recipe.batch_size
        if self.steps == 0:
            raise InputError(
                f"a batch of {recipe.batch_size} is larger than the {len(source)} training images; "
                f"pass --batch-size {len(source)} or less"
            )
        self.skipped: dict[str, str] = {}
        self._source = source
        self._recipe = recipe
        self._workers = workers
        self._skip_unreadable = skip_unreadable

    def epoch(self, epoch: int) -> Loader:
        """The batches of an epoch, counted from 0."""
        recipe = self._recipe
        loader = Loader(
            AugmentedSource(self._source, recipe, epoch),
            EvalTransform(image_size=recipe.image_size, crop_ratio=1.0, mean=recipe.mean, std=recipe.std),
            recipe.batch_size,
            self._workers,
            self._skip_unreadable,
            self.order(epoch),
        )
        loader.skipped = self.skipped
        return loader

    def order(self, epoch: int) -> list[int]:
        """The images of an epoch, counted from 0, as indices into the source."""
        order = np.random.default_rng((self._recipe.seed, epoch)).permutation(len(self._source))
        indices: list[int] = order[: self.steps * self._recipe.batch_size].tolist()
        return indices


def validation_loader(source: ImageSource, recipe: Recipe, workers: int = 0, skip_unreadable: bool = False) -> Loader:
    """All labeled images of a source, in order, as they are for evaluation.

    Raises:
        InputError: the images have no labels or another number of classes than the recipe.
    """
    _require_classes(source, recipe.num_classes, "validation")
    transform = EvalTransform(
        image_size=recipe.image_size, crop_ratio=recipe.crop_ratio, mean=recipe.mean, std=recipe.std
    )
    return Loader(source, transform, recipe.batch_size, workers, skip_unreadable)


@dataclass(frozen=True)
class AugmentedSource:
    """A source whose images are augmented, to the recipe's image size, as they are in one epoch."""

    source: ImageSource
    recipe: Recipe
    epoch: int

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names by label."""
        return self.source.classes

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> Image.Image:
        """The augmented image as RGB; raises UnreadableImageError."""
        random = np.random.default_rng((self.recipe.seed, self.epoch, index))
        crop = CROPS[self.recipe.augmentation]
        return random_flip(crop(self.source.image(index), self.recipe.image_size, random), random)

    def label(self, index: int) -> int | None:
        """The index of the image's class in `classes`."""
        return self.source.label(index)

    def name(self, index: int) -> str:
        """The name of the original."""
        return self.source.name(index)

    def read_bytes(self, index: int) -> bytes:
        """The content of the original as it is stored."""
        return self.source.read_bytes(index)


def _require_classes(source: ImageSource, num_classes: int, what: str) -> None:
    if source.classes is None:
        raise InputError(f"the {what} images have no labels; put them into a folder for each class")
    if len(source.classes) != num_classes:
        raise InputError(
            f"the {what} images have {len(source.classes)} classes, the network {num_classes}; "
            f"pass --num-classes {len(source.classes)}"
        )
