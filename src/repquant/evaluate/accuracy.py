"""Top-1 and top-5 accuracy."""

from dataclasses import dataclass
from math import sqrt

from repquant.evaluate.predictions import Predictions

Z95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution: half-width of a 95 % interval, in standard errors."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Accuracy on labeled images, in percent.

    Attributes:
        top1: images whose label has the largest logit.
        top1_ci95: its 95 % interval (Wilson).
        top5: images whose label is among the five largest logits; None with five classes or fewer.
        images: how many images.
    """

    top1: float
    top1_ci95: tuple[float, float]
    top5: float | None
    images: int


def accuracy(predictions: Predictions) -> Accuracy | None:
    """Return the accuracy of predictions, or None when the images have no labels."""
    if predictions.correct is None:
        return None
    hits, images = int(predictions.correct.sum()), predictions.images
    low, high = wilson_interval(hits, images)
    return Accuracy(
        top1=100 * hits / images,
        top1_ci95=(100 * low, 100 * high),
        top5=None if predictions.in_top5 is None else 100 * float(predictions.in_top5.mean()),
        images=images,
    )


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion, within 0..1.

    The score interval of Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22
    (1927): it keeps its coverage near 0 and 1, where accuracies are.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes in {trials} trials is no proportion")
    proportion, z2 = successes / trials, Z95 * Z95
    center = (proportion + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * sqrt(proportion * (1 - proportion) / trials + z2 / (4 * trials**2))
    return max(0.0, center - half), min(1.0, center + half)
