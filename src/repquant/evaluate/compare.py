"""How far a quantized model is from its float original, and a runtime from its simulation."""

from dataclasses import dataclass
from math import inf, log10, sqrt

import numpy as np
from numpy.typing import NDArray

from repquant.evaluate.accuracy import Z95
from repquant.evaluate.predictions import OutputDifference

_INT8_STEPS = 127

STEP_EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Upper ends of the bins that `Parity.step_counts` has, in output steps; the last bin has none."""


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Accuracy lost against the float model on the same images, in points of top-1.

    Attributes:
        points: positive when the model is worse.
        ci95: 95 % interval of `points`.
    """

    points: float
    ci95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How closely a model follows its float original.

    Attributes:
        agreement: images on which both name the same class, in percent; None for outputs that are no logits.
        kl: mean KL(softmax(float) || softmax(quantized)), in nats; None likewise.
        sqnr_db: 10 log10(sum f^2 / sum (f - q)^2) over the values of all images; inf when they are equal.
    """

    agreement: float | None
    kl: float | None
    sqnr_db: float


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How closely a runtime follows the simulation of the model that it executes.

    Attributes:
        same_top1: images on which both name the same class, in percent; None for outputs that are no logits.
        max_logit_steps: the largest difference between their values, in output steps. The step is the one that 8-bit
            values would have: the simulation's largest magnitude over these images, divided by 127.
        step_counts: images by the largest difference between their values: none at all, above 0 and up to
            `STEP_EDGES[1]`, and so on.
    """

    same_top1: float | None
    max_logit_steps: float
    step_counts: tuple[int, ...]


def paired_drop(float_correct: NDArray[np.bool_], correct: NDArray[np.bool_]) -> Drop:
    """Return the drop of top-1 from the float model to another one on the same N images, (N,) and (N,).

    With b images that only the float model gets right and c that only the other one does, the drop is (b - c) / N.
    The interval is the adjusted Wald interval for matched pairs of Agresti and Min, "Simple improved confidence
    intervals for comparing matched proportions", Statistics in Medicine 24 (2005): half an image is added to each
    cell of the 2 x 2 table. So it keeps its coverage when few images or none tell the two apart. Its middle is
    (b - c) / (N + 2), a little closer to zero than the drop itself.

    Raises:
        ValueError: the two differ in length, or there are no images.
    """
    if float_correct.shape != correct.shape or not len(correct):
        raise ValueError(f"can't pair {len(float_correct)} images with {len(correct)}")
    images = len(correct)
    lost = int((float_correct & ~correct).sum())
    gained = int((correct & ~float_correct).sum())

    total, discordant, net = images + 2, lost + gained + 1, lost - gained
    middle = net / total
    half = Z95 * sqrt(discordant - net * net / total) / total
    return Drop(
        points=100 * net / images,
        ci95=(100 * max(-1.0, middle - half), 100 * min(1.0, middle + half)),
    )


def fidelity(difference: OutputDifference) -> Fidelity:
    """Summarize the difference between a model's logits and those of its float original."""
    return Fidelity(
        agreement=_percent(difference.same_top1),
        kl=None if difference.kl is None else float(difference.kl.mean()),
        sqnr_db=_decibel(difference.signal, difference.noise),
    )


def parity(difference: OutputDifference) -> Parity:
    """Summarize the difference between a runtime's logits and those of its simulation, the reference."""
    step = difference.reference_largest / _INT8_STEPS
    steps = [_steps(largest, step) for largest in difference.largest.tolist()]
    counts = np.bincount(np.searchsorted(STEP_EDGES, steps), minlength=len(STEP_EDGES) + 1)
    return Parity(
        same_top1=_percent(difference.same_top1),
        max_logit_steps=max(steps),
        step_counts=tuple(counts.tolist()),
    )


def _percent(same: NDArray[np.bool_] | None) -> float | None:
    return None if same is None else 100 * float(same.mean())


def _steps(largest: float, step: float) -> float:
    if largest == 0:
        return 0.0
    return largest / step if step > 0 else inf


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return inf
    return 10 * log10(signal / noise) if signal > 0 else -inf
