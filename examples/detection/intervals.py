"""How much a metric fell on the same images, and how sure that is."""

from typing import Protocol

import numpy as np


class Results(Protocol):
    """What a network did on some images."""

    def score(self, weights: np.ndarray | None = None) -> float: ...


class Bootstrap:
    """Compares results with those of one network, on the same images and on as many drawn from them.

    Args:
        reference: what the others are compared with.
        images: how many there are.
        draws: of as many images, with putting back.
    """

    def __init__(self, reference: Results, images: int, draws: int = 400) -> None:
        self._weights = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=draws)
        self._reference = reference
        self._scores = self._drawn(reference)

    def drop(self, other: Results) -> tuple[float, float, float]:
        """Return how far a score is below the reference, and the 95 % interval of that."""
        low, high = np.percentile(self._scores - self._drawn(other), (2.5, 97.5))
        return self._reference.score() - other.score(), float(low), float(high)

    def _drawn(self, results: Results) -> np.ndarray:
        return np.array([results.score(weights) for weights in self._weights])
