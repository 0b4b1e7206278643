"""What is kept of logits: a few numbers an image, never the logits themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from repquant.numerics.distance import softmax_kl

ScalarT = TypeVar("ScalarT", bound=np.generic)

_TOP5_FROM_CLASSES = 6


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What one runtime said about N images.

    Attributes:
        top1: class with the largest logit, the first one of a tie, (N,).
        probability: that the softmax gives it, (N,).
        correct: whether that is the label, (N,); None without labels.
        in_top5: whether the label is among the five largest logits, the first ones of a tie, (N,); None
            without labels, and with five classes or fewer, where it always is.
    """

    top1: NDArray[np.int64]
    probability: NDArray[np.float64]
    correct: NDArray[np.bool_] | None
    in_top5: NDArray[np.bool_] | None

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self.top1)

    @classmethod
    def of(cls, logits: NDArray[np.float32], labels: NDArray[np.int64] | None) -> Self:
        """Keep what matters of finite logits (N, K) and their labels (N,), each in 0..K-1."""
        top1 = logits.argmax(axis=1).astype(np.int64)
        probability = 1 / np.exp(logits - logits.max(axis=1, keepdims=True).astype(np.float64)).sum(axis=1)
        if labels is None:
            return cls(top1=top1, probability=probability, correct=None, in_top5=None)
        has_top5 = logits.shape[1] >= _TOP5_FROM_CLASSES
        return cls(
            top1=top1,
            probability=probability,
            correct=top1 == labels,
            in_top5=label_ranks(logits, labels) < 5 if has_top5 else None,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join the predictions of consecutive images, all of them labeled or none."""
        return cls(
            top1=np.concatenate([part.top1 for part in parts]),
            probability=np.concatenate([part.probability for part in parts]),
            correct=_join([part.correct for part in parts]),
            in_top5=_join([part.in_top5 for part in parts]),
        )


@dataclass(frozen=True, kw_only=True)
class OutputDifference:
    """How an output q of one runtime differs from that of another one, the reference f, on N images.

    Attributes:
        same_top1: whether both name the same class, (N,); None for outputs that are no logits (N, K).
        kl: KL(softmax(f) || softmax(q)) in nats, (N,); None likewise.
        signal: sum of f^2.
        noise: sum of (f - q)^2.
        largest: largest |f - q| of each image, (N,).
        reference_largest: largest |f|.
    """

    same_top1: NDArray[np.bool_] | None
    kl: NDArray[np.float64] | None
    signal: float
    noise: float
    largest: NDArray[np.float64]
    reference_largest: float

    @classmethod
    def between(cls, reference: NDArray[np.float32], logits: NDArray[np.float32]) -> Self:
        """Compare finite outputs (N, ...) with those of the reference, of the same shape with N > 0."""
        wide = reference.astype(np.float64)
        difference = wide - logits
        is_logits = has_classes(reference)
        return cls(
            same_top1=reference.argmax(axis=1) == logits.argmax(axis=1) if is_logits else None,
            kl=softmax_kl(torch.tensor(reference), torch.tensor(logits)).numpy() if is_logits else None,
            signal=float(np.square(wide).sum()),
            noise=float(np.square(difference).sum()),
            largest=np.abs(difference).reshape(len(difference), -1).max(axis=1),
            reference_largest=float(np.abs(wide).max()),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join the differences of consecutive images."""
        return cls(
            same_top1=_join([part.same_top1 for part in parts]),
            kl=_join([part.kl for part in parts]),
            signal=sum(part.signal for part in parts),
            noise=sum(part.noise for part in parts),
            largest=np.concatenate([part.largest for part in parts]),
            reference_largest=max(part.reference_largest for part in parts),
        )


def label_ranks(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many classes come before the label, (N,), by logit and, in a tie, by index: 0 is top-1."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    before: NDArray[np.bool_] = (logits > own) | ((logits == own) & earlier)
    ranks: NDArray[np.int64] = before.sum(axis=1, dtype=np.int64)
    return ranks


def has_classes(output: NDArray[np.float32]) -> bool:
    """Whether an output counts as logits: (N, K) with more than one class."""
    return output.ndim == 2 and output.shape[1] > 1


def _join(parts: Sequence[NDArray[ScalarT] | None]) -> NDArray[ScalarT] | None:
    present = [part for part in parts if part is not None]
    if not present:
        return None
    if len(present) < len(parts):
        raise ValueError(f"{len(present)} of {len(parts)} parts have labels; all or none must have them")
    return np.concatenate(present)
