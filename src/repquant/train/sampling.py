"""The images of a training. They are shuffled and augmented by seed, epoch and index alone.

No random state is carried along, so a batch is the same in a resumed run, with any number of workers, and with any
number of processes that share it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from repquant.data.datasets import ImageSource
from repquant.data.decoding import ChooseCrop, cut
from repquant.data.loading import Batch, DecodedBatch, Loader, decode_ahead, decode_batch
from repquant.data.transforms import EvalTransform
from repquant.errors import InputError
from repquant.train.augment import CROPS, center_crop, random_flip, random_resized_crop
from repquant.train.distributed import ONE, Ranks
from repquant.train.recipe import Recipe


class TrainingSet:
    """Labeled images as the batches of a training; all have the recipe's batch size, over the ranks together.

    Args:
        source: where the images come from.
        recipe: says how they are augmented and seeded.
        workers: processes that decode; 0 decodes in this one.
        skip_unreadable: go on without images that can't be read; their batch is shorter.
        ranks: with whom each batch is shared; every rank has the same number of consecutive images of it.

    Attributes:
        steps: batches of an epoch. The images that do not fill another batch are left out, others in each epoch.
        skipped: name -> reason of the unreadable images met so far.

    Raises:
        InputError: the images have no labels or another number of classes than the recipe, they do not fill one
            batch, or a batch can't be shared evenly, or in parts so small that they have no batch statistics.
    """

    def __init__(
        self,
        source: ImageSource,
        recipe: Recipe,
        workers: int = 0,
        skip_unreadable: bool = False,
        ranks: Ranks = ONE,
    ) -> None:
        _require_classes(source, recipe.num_classes, "training")
        _require_even_parts(recipe, ranks)
        self.steps = len(source) // recipe.batch_size
        if self.steps == 0:
            raise InputError(
                f"a batch of {recipe.batch_size} is larger than the {len(source)} training images; "
                f"pass `batch_size={len(source)}` or less"
            )
        self.skipped: dict[str, str] = {}
        self._batches = _Batches(source, recipe, ranks)
        self._recipe = recipe
        self._workers = workers
        self._skip_unreadable = skip_unreadable

    def order(self, epoch: int) -> Sequence[int]:
        """The images of an epoch, counted from 0, as indices into the source; those of all ranks."""
        return self._batches.order(epoch)

    def batches(self, first: int, end: int, device: torch.device) -> Iterator[Batch]:
        """This rank's parts of the batches of steps `first` to `end` - 1, on a device; steps run on over all epochs.

        Each step has `recipe.accumulation_steps` of them.

        Raises:
            InputError: an image can't be read and is not to be skipped, or none of a part can.
        """
        recipe, parts = self._recipe, self._recipe.accumulation_steps
        items = range(first * parts, end * parts)
        # Only its normalization is used here, which does not depend on the size.
        transform = EvalTransform(image_size=recipe.image_size, crop_ratio=1.0, mean=recipe.mean, std=recipe.std)
        for decoded in decode_ahead(self._batches, self._workers, items, pin_memory=device.type == "cuda"):
            names = decoded.note_failures(self.skipped, self._skip_unreadable)
            if len(decoded.pixels) == 0:
                raise InputError(f"none of the {len(names)} images of a batch can be read, {names[0]} for one")
            assert decoded.labels is not None
            pixels, labels = (part.to(device, non_blocking=True) for part in (decoded.pixels, decoded.labels))
            yield Batch(transform.normalize(pixels), labels, names)


class _Batches(Dataset[DecodedBatch]):
    """Item i is the i-th part that this rank has of the batches of all epochs."""

    def __init__(self, source: ImageSource, recipe: Recipe, ranks: Ranks) -> None:
        self._source = source
        self._recipe = recipe
        self._ranks = ranks
        self._order: tuple[int, Sequence[int]] = (-1, ())

    def order(self, epoch: int) -> Sequence[int]:
        """See `TrainingSet.order`."""
        if self._order[0] != epoch:
            batch_size, images = self._recipe.batch_size, len(self._source)
            order = np.random.default_rng((self._recipe.seed, epoch)).permutation(images)
            self._order = epoch, order[: images // batch_size * batch_size].tolist()
        return self._order[1]

    def __getitem__(self, item: int) -> DecodedBatch:
        recipe = self._recipe
        step, part = divmod(item, recipe.accumulation_steps)
        epoch, batch = divmod(step, len(self._source) // recipe.batch_size)
        size = recipe.batch_size // self._ranks.world_size // recipe.accumulation_steps
        start = batch * recipe.batch_size + (self._ranks.rank * recipe.accumulation_steps + part) * size
        indices = self.order(epoch)[start : start + size]
        transform = EvalTransform(image_size=recipe.training_size(epoch), crop_ratio=1.0)
        return decode_batch(AugmentedSource(self._source, recipe, epoch), transform, indices)


def validation_loader(
    source: ImageSource, recipe: Recipe, workers: int = 0, skip_unreadable: bool = False, ranks: Ranks = ONE
) -> Loader:
    """All labeled images of a source, in order, as they are for evaluation; of several ranks, this one's part of them.

    Raises:
        InputError: the images have no labels or another number of classes than the recipe, or are fewer than the ranks.
    """
    _require_classes(source, recipe.num_classes, "validation")
    transform = EvalTransform(
        image_size=recipe.image_size, crop_ratio=recipe.crop_ratio, mean=recipe.mean, std=recipe.std
    )
    batch_size = max(1, recipe.batch_size // ranks.world_size // recipe.accumulation_steps)
    return Loader(source, transform, batch_size, workers, skip_unreadable, ranks.part(range(len(source))))


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

    def image(self, index: int, choose_crop: ChooseCrop | None = None) -> Image.Image:
        """The augmented image as RGB, or the chosen crop of it; raises UnreadableImageError."""
        random = np.random.default_rng((self.recipe.seed, self.epoch, index))
        crop = CROPS[self.recipe.augmentation]
        if crop is center_crop:
            crop = partial(center_crop, share=self.recipe.crop_ratio)
        elif crop is random_resized_crop:
            crop = partial(random_resized_crop, least_area=self.recipe.crop_area)
        load = partial(self.source.image, index)
        image = random_flip(crop(load, self.recipe.training_size(self.epoch), random), random)
        return image if choose_crop is None else cut(image, choose_crop(*image.size))

    def label(self, index: int) -> int | None:
        """The index of the image's class in `classes`."""
        return self.source.label(index)

    def name(self, index: int) -> str:
        """The name of the original."""
        return self.source.name(index)

    def read_bytes(self, index: int) -> bytes:
        """The content of the original as it is stored."""
        return self.source.read_bytes(index)


def _require_even_parts(recipe: Recipe, ranks: Ranks) -> None:
    parts = ranks.world_size * recipe.accumulation_steps
    if recipe.batch_size % parts:
        raise InputError(
            f"`batch_size={recipe.batch_size}` was given, of all processes together; with {ranks.world_size} processes "
            f"and {recipe.accumulation_steps} accumulation steps it must be a multiple of {parts}"
        )
    seen = recipe.batch_size // recipe.accumulation_steps if recipe.sync_bn else recipe.batch_size // parts
    if seen < 2:
        raise InputError(
            f"`batch_size={recipe.batch_size}` was given, of all processes together; with {ranks.world_size} processes "
            f"and {recipe.accumulation_steps} accumulation steps, batch statistics would be those of one image. Raise "
            "it, lower `accumulation_steps`, or with several processes pass `sync_bn=True`"
        )


def _require_classes(source: ImageSource, num_classes: int, what: str) -> None:
    if source.classes is None:
        raise InputError(f"the {what} images have no labels; put them into a folder for each class")
    if len(source.classes) != num_classes:
        raise InputError(
            f"the {what} images have {len(source.classes)} classes, the network {num_classes}; "
            f"pass `num_classes={len(source.classes)}`"
        )
