"""Images that are learned in a few steps, a network that trains in a second, and a plan for both."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from repquant.data.decoding import ChooseCrop, cut
from repquant.models.network import build
from repquant.models.spec import ArchSpec
from repquant.train.distributed import ONE, Ranks
from repquant.train.loop import Trainer
from repquant.train.recipe import Recipe
from repquant.train.sampling import TrainingSet, validation_loader
from repquant.train.task import FloatTask

SPEC = ArchSpec(name="RepVGG-test", blocks=(1, 2, 1, 1), widths=(0.125, 0.125, 0.125, 0.125))


@dataclass(frozen=True)
class NoiseSource:
    """Noise images; those of class 0 are dark, those of class 1 bright."""

    count: int
    size: tuple[int, int] = (16, 16)
    classes: tuple[str, ...] | None = ("dark", "bright")

    def __len__(self) -> int:
        return self.count

    def image(self, index: int, choose_crop: ChooseCrop | None = None) -> Image.Image:
        noise = np.random.default_rng(index).integers(0, 128, (*reversed(self.size), 3))
        image = Image.fromarray((noise + 128 * self.label(index)).astype(np.uint8))
        return image if choose_crop is None else cut(image, choose_crop(*image.size))

    def label(self, index: int) -> int:
        return index % 2

    def name(self, index: int) -> str:
        return str(index)

    def read_bytes(self, index: int) -> bytes:
        return self.image(index).tobytes()


def plan(**changes: object) -> Recipe:
    """A recipe for 32 small images, with changes."""
    settings = {
        "arch": SPEC.name,
        "num_classes": 2,
        "image_size": 16,
        "crop_ratio": 1.0,
        "augmentation": "padded-crop",
        "batch_size": 8,
        "epochs": 3,
    }
    return Recipe(**settings | changes)


def make_trainer(
    recipe: Recipe, images: int = 32, weights_seed: int = 0, ranks: Ranks = ONE, device: str = "cpu"
) -> Trainer:
    """A trainer at the beginning; other images or initial weights on request."""
    torch.manual_seed(weights_seed)
    training = TrainingSet(NoiseSource(images), recipe, ranks=ranks)
    validation = validation_loader(NoiseSource(10), recipe, ranks=ranks)
    return Trainer(FloatTask(build(SPEC, 2), recipe), recipe, training, validation, torch.device(device), ranks)
