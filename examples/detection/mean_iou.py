"""Mean intersection over union of a segmenter, and for any weights of the images."""

from dataclasses import dataclass

import numpy as np
import torch

from scenes import Scene, Scenes

CLASSES = 11  # with the background


@dataclass(frozen=True)
class Counts:
    """What is said of each image, and how often that is right.

    Attributes:
        said: (N, S, S), classes.
        pixels: (N, C, C), of each image, by what they show and what is said of them.
    """

    said: torch.Tensor
    pixels: np.ndarray

    def score(self, weights: np.ndarray | None = None) -> float:
        """Return the mIoU in points; each image counts as its weight (N,) says."""
        weights = np.ones(len(self.pixels)) if weights is None else weights
        total = np.tensordot(weights, self.pixels, 1)
        shared = total.diagonal()
        either = total.sum(0) + total.sum(1) - shared
        return 100 * float((shared[either > 0] / either[either > 0]).mean())

    def alike(self, other: "Counts") -> float:
        """Return of how many pixels both say the same, in percent."""
        return 100 * float((self.said == other.said).float().mean())


class MeanIou:
    """The mIoU of a network on some scenes: what `rq.search` and `rq.prove` take as `evaluate`.

    Args:
        scenes: of one split.
        numbers: which of them.
    """

    def __init__(self, scenes: Scenes, numbers: range) -> None:
        self.batches, self.truth = scenes.batches(numbers)

    def __call__(self, network) -> float:
        return self.results(network).score()

    def results(self, network) -> Counts:
        """Return what a network says: a callable from (N, 3, S, S) to logits (N, C, S, S)."""
        logits = (network(images) for images in self.batches)
        said = torch.cat([batch.argmax(1) for batch in logits])
        return Counts(said, np.stack([_pixels(*pair) for pair in zip(self.truth, said, strict=True)]))


def _pixels(scene: Scene, said: torch.Tensor) -> np.ndarray:
    pairs = scene.mask * CLASSES + said
    return torch.bincount(pairs.flatten(), minlength=CLASSES**2).view(CLASSES, CLASSES).numpy()
