"""The images on which a quantized model and its float original disagree most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from repquant.evaluate.predictions import OutputDifference
from repquant.evaluate.stream import Evaluation, Images, Pair


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """What two models say about one image.

    Attributes:
        position: of the image among those that were evaluated.
        kl: KL(softmax(float) || softmax(quantized)), in nats.
        float_class, float_probability: the float model's answer, and what its softmax gives it.
        quantized_class, quantized_probability: the quantized model's.
    """

    position: int
    kl: float
    float_class: int
    float_probability: float
    quantized_class: int
    quantized_probability: float


def largest_disagreements(evaluation: Evaluation, name: str, float_name: str, count: int) -> tuple[Disagreement, ...]:
    """Return at most `count` images, those with two answers first, and of either kind the largest KL first.

    Args:
        evaluation: must hold the pair (name, float_name).
        name, float_name: of the two models.
        count: of images.

    Returns:
        Nothing where the output of the models is no logits.
    """
    difference = evaluation.differences[name, float_name]
    if difference.kl is None or difference.same_top1 is None:
        return ()
    original, quantized = evaluation.predictions[float_name], evaluation.predictions[name]
    worst_first = np.lexsort((-difference.kl, difference.same_top1))  # stable: of equals the first image
    return tuple(
        Disagreement(
            position=place,
            kl=float(difference.kl[place]),
            float_class=int(original.top1[place]),
            float_probability=float(original.probability[place]),
            quantized_class=int(quantized.top1[place]),
            quantized_probability=float(quantized.probability[place]),
        )
        for place in worst_first[:count].tolist()
    )


class Keeper:
    """Keeps the images of `largest_disagreements` while they pass by: another pass may have another order.

    Args:
        pair: (name, float_name).
        count: of images.

    Attributes:
        images: place -> first input of the network, without the batch's dimension, and label.
    """

    def __init__(self, pair: Pair, count: int) -> None:
        self._pair = pair
        self._count = count
        self._seen = 0
        self._ranks: dict[int, tuple[bool, float]] = {}
        self.images: dict[int, tuple[Tensor, int | None]] = {}

    def see(self, chunk: Sequence[Images], differences: Mapping[Pair, OutputDifference]) -> None:
        """Take in a chunk of `evaluate`."""
        difference, start = differences[self._pair], self._seen
        self._seen += sum(len(_first_input(batch)) for batch in chunk)
        if difference.kl is None or difference.same_top1 is None:
            return
        pairs = zip(difference.same_top1.tolist(), (-difference.kl).tolist(), strict=True)
        ranks = self._ranks | dict(enumerate(pairs, start))
        self._ranks = {
            place: ranks[place] for place in sorted(ranks, key=lambda place: (ranks[place], place))[: self._count]
        }
        kept = {place: image for place, image in self.images.items() if place in self._ranks}
        for batch in chunk:
            inputs = _first_input(batch)
            for place in range(start, start + len(inputs)):
                if place in self._ranks:
                    label = None if batch.labels is None else int(batch.labels[place - start])
                    kept[place] = inputs[place - start].clone(), label
            start += len(inputs)
        self.images = kept


def _first_input(batch: Images) -> Tensor:
    return batch.images[0] if isinstance(batch.images, tuple) else batch.images
