"""One pass over the images serves all runtimes; memory holds one chunk of images and a few numbers an image."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Self

import numpy as np
from numpy.typing import NDArray

from repquant.data.loading import Batch
from repquant.errors import InputError
from repquant.evaluate.predictions import LogitDifference, Predictions
from repquant.runtimes.interface import Runtime

Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one pass measured.

    Attributes:
        predictions: for each runtime.
        differences: for each compared pair (runtime, reference).
        seconds: spent inside each runtime, over all images, without its warm-up.
    """

    predictions: dict[str, Predictions]
    differences: dict[Pair, LogitDifference]
    seconds: dict[str, float]

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join what the processes measured that shared the images, in the images' order; the slowest one's time counts.

        Args:
            parts: of the same runtimes and pairs.
        """
        names, pairs = parts[0].predictions, parts[0].differences
        return cls(
            predictions={name: Predictions.concatenate([part.predictions[name] for part in parts]) for name in names},
            differences={
                pair: LogitDifference.concatenate([part.differences[pair] for part in parts]) for pair in pairs
            },
            seconds={name: max(part.seconds[name] for part in parts) for name in names},
        )


def evaluate(
    runtimes: Mapping[str, Runtime],
    batches: Iterable[Batch],
    *,
    compare: Sequence[Pair] = (),
    num_classes: int | None = None,
    chunk_images: int = 256,
    on_images: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run every runtime on every batch, and compare the logits of the pairs asked for.

    A runtime gets several batches in a row, `chunk_images` images or a little more, before the next one has
    its turn: thread pools that wake up and caches that refill at each turn then weigh little in the seconds.
    Before the first turn each one runs the first batch, outside the clock.

    Args:
        runtimes: name -> runtime; names are the caller's, for example "entropy/onnxruntime".
        batches: images and, in all batches or in none, labels.
        compare: pairs (runtime, reference) of names, for example ("entropy/pytorch", "float") for the cost of
            quantization and ("entropy/onnxruntime", "entropy/pytorch") for parity.
        num_classes: logits an image that every runtime has to give; None for any number.
        chunk_images: images that are held in memory, at least.
        on_images: called with the number of images that all runtimes have finished since its last call.

    Raises:
        InputError: there are no images, a label that a runtime has no class for, or another number of logits.
        FloatingPointError: a runtime returned NaN or infinite logits.
        ValueError: a pair names no runtime, or the logits of a pair differ in their number of classes.
    """
    if unknown := {name for pair in compare for name in pair} - runtimes.keys():
        raise ValueError(f"no runtime named {', '.join(sorted(unknown))}; there are {', '.join(runtimes)}")
    predictions: dict[str, list[Predictions]] = {name: [] for name in runtimes}
    differences: dict[Pair, list[LogitDifference]] = {pair: [] for pair in compare}
    seconds = dict.fromkeys(runtimes, 0.0)

    for number, chunk in enumerate(_chunks(batches, chunk_images)):
        images = [np.ascontiguousarray(batch.images.numpy()) for batch in chunk]
        labels = _labels(chunk)
        logits = {}
        for name, runtime in runtimes.items():
            if number == 0:
                runtime(images[0])
            start = perf_counter()
            outputs = [runtime(batch) for batch in images]
            seconds[name] += perf_counter() - start
            logits[name] = _checked(name, np.concatenate(outputs), labels, num_classes)
            predictions[name].append(Predictions.of(logits[name], labels))
        for pair in compare:
            differences[pair].append(_difference(pair, logits))
        if on_images is not None:
            on_images(sum(map(len, images)))

    if runtimes and not any(predictions.values()):
        raise InputError("there are no images to evaluate; give a folder that has some, or a larger subset")
    return Evaluation(
        predictions={name: Predictions.concatenate(parts) for name, parts in predictions.items()},
        differences={pair: LogitDifference.concatenate(parts) for pair, parts in differences.items()},
        seconds=seconds,
    )


def _chunks(batches: Iterable[Batch], images: int) -> Iterator[list[Batch]]:
    chunk: list[Batch] = []
    for batch in batches:
        chunk.append(batch)
        if sum(len(held.images) for held in chunk) >= images:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _labels(chunk: list[Batch]) -> NDArray[np.int64] | None:
    labels = [batch.labels.numpy() for batch in chunk if batch.labels is not None]
    if labels and len(labels) < len(chunk):
        raise ValueError(f"{len(labels)} of {len(chunk)} batches have labels; all or none must have them")
    return np.concatenate(labels) if labels else None


def _checked(
    name: str, logits: NDArray[np.float32], labels: NDArray[np.int64] | None, num_classes: int | None
) -> NDArray[np.float32]:
    classes = logits.shape[1]
    if num_classes is not None and classes != num_classes:
        raise InputError(
            f"runtime {name} gives {classes} logits an image, and the model is to have {num_classes} classes; is it a "
            f"classifier? If it is, pass --num-classes {classes}"
        )
    broken = int((~np.isfinite(logits)).any(axis=1).sum())
    if broken:
        raise FloatingPointError(f"runtime {name} returned NaN or infinite logits for {broken} of {len(logits)} images")
    if labels is not None and labels.max() >= classes:
        raise InputError(
            f"runtime {name} has {classes} classes, but the images have labels up to {labels.max()}; "
            "give a model and images with the same classes"
        )
    return logits


def _difference(pair: Pair, logits: Mapping[str, NDArray[np.float32]]) -> LogitDifference:
    name, reference = pair
    if logits[name].shape != logits[reference].shape:
        raise ValueError(
            f"{name} has {logits[name].shape[1]} classes and {reference} has {logits[reference].shape[1]}: "
            "they can't be compared"
        )
    return LogitDifference.between(logits[reference], logits[name])
