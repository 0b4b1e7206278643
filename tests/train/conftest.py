"""A labeled source that is learned in a few steps, and a network that trains in a second."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from repquant.models.network import build
from repquant.models.spec import ArchSpec
from repquant.train.loop import Trainer
from repquant.train.recipe import Recipe
from repquant.train.sampling import TrainingSet, validation_loader

SPEC = ArchSpec(name="RepVGG-test", blocks=(1, 2, 1, 1), widths=(0.125, 0.125, 0.125, 0.125))


@dataclass(frozen=True)
class NoiseSource:
    """Noise images; those of class 0 are dark, those of class 1 bright."""

    count: int
    size: tuple[int, int] = (16, 16)
    classes: tuple[str, ...] | None = ("dark", "bright")

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> Image.Image:
        noise = np.random.default_rng(index).integers(0, 128, (*reversed(self.size), 3))
        return Image.fromarray((noise + 128 * self.label(index)).astype(np.uint8))

    def label(self, index: int) -> int:
        return index % 2

    def name(self, index: int) -> str:
        return str(index)

    def read_bytes(self, index: int) -> bytes:
        return self.image(index).tobytes()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks as small as these are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def noise() -> type[NoiseSource]:
    return NoiseSource


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """A recipe for 32 small images, with changes."""

    def make(**changes: object) -> Recipe:
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

    return make


@pytest.fixture
def trainer() -> Callable[..., Trainer]:
    """A trainer at the beginning; other images or initial weights on request."""

    def make(recipe: Recipe, images: int = 32, weights_seed: int = 0) -> Trainer:
        torch.manual_seed(weights_seed)
        training = TrainingSet(NoiseSource(images), recipe)
        return Trainer(
            build(SPEC, 2), recipe, training, validation_loader(NoiseSource(10), recipe), torch.device("cpu")
        )

    return make
