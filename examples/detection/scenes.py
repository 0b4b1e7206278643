"""Scenes to detect and to segment: the built-in Fashion-MNIST images, tinted, on photographs or on smooth textures.

A scene is a function of the seed and its number alone, so that no data has to be kept.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from repquant.data.builtin_set import BuiltinSet

SIZE = 128
SIDES = (20, 72)  # of the 28 x 28 images when they are placed, in pixels
OBJECTS = (3, 8)  # that are tried; one that would hide another too much is left out
LEAST_VISIBLE = 0.5  # of an object that others cover
PHOTOGRAPHS = {".jpg", ".jpeg", ".png"}


@dataclass(frozen=True)
class Scene:
    """An image and what it shows.

    Attributes:
        image: (3, S, S), float32, about zero mean and unit deviation.
        boxes: (K, 4), float32, left, top, right, bottom in pixels, of whole objects also where others cover them.
        labels: (K,), int64, classes of the objects.
        mask: (S, S), int64, what is visible: 0 for background, else 1 + class.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    mask: Tensor


class Scenes:
    """Scenes of one split: its objects on its photographs.

    Args:
        split: of the built-in set; with photographs, of the folder too.
        photographs: folder with `train` and `val`, which hold JPEG or PNG files at any depth; None for smooth textures.
        seed: another one gives other scenes.
    """

    def __init__(self, split: Literal["train", "val"], photographs: Path | None = None, seed: int = 0) -> None:
        self._objects = BuiltinSet(split)
        self._backgrounds: list[Path] | None = None
        if photographs is not None:
            self._backgrounds = sorted(p for p in (photographs / split).rglob("*") if p.suffix.lower() in PHOTOGRAPHS)
            if not self._backgrounds:
                raise FileNotFoundError(f"{photographs / split} holds no JPEG or PNG files")
        self._seed = (seed, len(split))

    def __getitem__(self, number: int) -> Scene:
        """Compose a scene; there is one for every number from 0."""
        random = np.random.default_rng((*self._seed, number))
        canvas = self._background(random)
        owner = np.full((SIZE, SIZE), -1)  # which object is seen at each pixel
        boxes, labels = [], []
        for _ in range(random.integers(*OBJECTS, endpoint=True)):
            index = int(random.integers(len(self._objects)))
            layer, alpha = _place(self._objects.image(index), random)
            shape = alpha > 0.5
            if not shape.any() or _hides_another(owner, shape):
                continue
            owner[shape] = len(boxes)
            canvas = canvas + alpha[..., None] * (layer - canvas)
            boxes.append(_box_around(shape))
            labels.append(self._objects.label(index))
        classes = torch.tensor(labels)
        return Scene(
            image=torch.from_numpy(((canvas - 0.45) / 0.25).transpose(2, 0, 1).astype(np.float32)),
            boxes=torch.tensor(boxes, dtype=torch.float32),
            labels=classes,
            mask=torch.cat([torch.zeros(1, dtype=torch.int64), 1 + classes])[torch.from_numpy(owner + 1)],
        )

    def batch(self, numbers: range) -> tuple[Tensor, list[Scene]]:
        """Return the images (N, 3, S, S) of some scenes, and the scenes."""
        scenes = [self[number] for number in numbers]
        return torch.stack([scene.image for scene in scenes]), scenes

    def batches(self, numbers: range, size: int = 50) -> tuple[list[Tensor], list[Scene]]:
        """Return the images of some scenes in batches (N, 3, S, S), and the scenes in the same order."""
        chunks = (numbers[start : start + size] for start in range(0, len(numbers), size))
        parts = [self.batch(chunk) for chunk in chunks]
        return [images for images, _ in parts], [scene for _, scenes in parts for scene in scenes]

    def _background(self, random: np.random.Generator) -> np.ndarray:
        if self._backgrounds is None:
            cells = int(random.integers(2, 9))
            small = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            return _pixels(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        with Image.open(self._backgrounds[random.integers(len(self._backgrounds))]) as photograph:
            photograph = photograph.convert("RGB")
        side = min(photograph.size) * random.uniform(0.6, 1.0)
        left, top = (random.uniform(0, length - side) for length in photograph.size)
        box = (left, top, left + side, top + side)
        return _pixels(photograph.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64) / 255


def _place(garment: Image.Image, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a tinted garment somewhere on a canvas (S, S, 3), and its opacity (S, S)."""
    side = round(float(np.exp(random.uniform(*np.log(SIDES)))))
    garment = garment.convert("L").resize((side, side), Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        garment = garment.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left, top = random.integers(0, SIZE - side, 2, endpoint=True)
    gray = np.zeros((SIZE, SIZE))
    gray[top : top + side, left : left + side] = _pixels(garment)
    tint = random.uniform(0.4, 1.0, 3)
    return (0.15 + 0.85 * gray[..., None]) * tint, np.minimum(1, 5 * gray)


def _hides_another(owner: np.ndarray, shape: np.ndarray) -> bool:
    """Whether too little of an object that is there remains visible."""
    covered = owner[shape]
    return any((covered == k).sum() > (1 - LEAST_VISIBLE) * (owner == k).sum() for k in set(covered.tolist()) - {-1})


def _box_around(shape: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
