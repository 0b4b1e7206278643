"""One pass over the images serves all runtimes; memory holds one chunk of images and a few numbers an image."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from repquant.errors import InputError
from repquant.evaluate.predictions import OutputDifference, Predictions, has_classes
from repquant.runtimes.interface import Runtime

Pair = tuple[str, str]
Array = NDArray[np.float32]


class Images(Protocol):
    """A batch: the network's inputs (N, ...), one tensor or several, and the classes (N,), or None."""

    @property
    def images(self) -> Tensor | tuple[Tensor, ...]:
        """The inputs."""

    @property
    def labels(self) -> Tensor | None:
        """The classes."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one pass measured.

    Attributes:
        predictions: for each runtime, from the network's first output; none where that is no logits (N, K).
        differences: for each compared pair (runtime, reference), of the first output.
        seconds: spent inside each runtime, over all images, without its warm-up.
        images: how many.
        others: the same as `differences` of the other outputs, in their order.
    """

    predictions: dict[str, Predictions]
    differences: dict[Pair, OutputDifference]
    seconds: dict[str, float]
    images: int
    others: dict[Pair, tuple[OutputDifference, ...]] = field(default_factory=dict)

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
                pair: OutputDifference.concatenate([part.differences[pair] for part in parts]) for pair in pairs
            },
            seconds={name: max(part.seconds[name] for part in parts) for name in parts[0].seconds},
            images=sum(part.images for part in parts),
            others={
                pair: tuple(map(OutputDifference.concatenate, zip(*(part.others[pair] for part in parts), strict=True)))
                for pair in parts[0].others
            },
        )


def evaluate(
    runtimes: Mapping[str, Runtime],
    batches: Iterable[Images],
    *,
    compare: Sequence[Pair] = (),
    num_classes: int | None = None,
    chunk_images: int = 256,
    on_images: Callable[[int], None] | None = None,
    on_chunk: Callable[[Sequence[Images], Mapping[Pair, OutputDifference]], None] | None = None,
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
        on_chunk: called with the batches of a chunk and their differences, of the first output.

    Raises:
        InputError: there are no images, a label that a runtime has no class for, or another number of logits.
        FloatingPointError: a runtime returned NaN or infinite values.
        ValueError: a pair names no runtime, or the logits of a pair differ in their number of classes.
    """
    if unknown := {name for pair in compare for name in pair} - runtimes.keys():
        raise ValueError(f"no runtime named {', '.join(sorted(unknown))}; there are {', '.join(runtimes)}")
    predictions: dict[str, list[Predictions]] = {name: [] for name in runtimes}
    differences: dict[Pair, list[tuple[OutputDifference, ...]]] = {pair: [] for pair in compare}
    seconds = dict.fromkeys(runtimes, 0.0)
    images = 0

    for number, chunk in enumerate(_chunks(batches, chunk_images)):
        inputs = [_arrays(batch) for batch in chunk]
        labels = _labels(chunk)
        results: dict[str, tuple[Array, ...]] = {}
        for name, runtime in runtimes.items():
            if number == 0:
                runtime(*inputs[0])
            start = perf_counter()
            outputs = [_outputs(runtime(*arrays)) for arrays in inputs]
            seconds[name] += perf_counter() - start
            results[name] = _checked(name, outputs, labels, num_classes)
            if has_classes(results[name][0]):
                predictions[name].append(Predictions.of(results[name][0], labels))
        for pair in compare:
            differences[pair].append(_difference(pair, results))
        images += sum(len(arrays[0]) for arrays in inputs)
        if on_chunk is not None:
            on_chunk(chunk, {pair: parts[-1][0] for pair, parts in differences.items()})
        if on_images is not None:
            on_images(sum(len(arrays[0]) for arrays in inputs))

    if runtimes and not images:
        raise InputError("there are no images to evaluate; give a folder that has some, or a larger subset")
    joined = {
        pair: tuple(map(OutputDifference.concatenate, zip(*parts, strict=True))) for pair, parts in differences.items()
    }
    return Evaluation(
        predictions={name: Predictions.concatenate(parts) for name, parts in predictions.items() if parts},
        differences={pair: outputs[0] for pair, outputs in joined.items()},
        seconds=seconds,
        images=images,
        others={pair: outputs[1:] for pair, outputs in joined.items()},
    )


def _chunks(batches: Iterable[Images], images: int) -> Iterator[list[Images]]:
    chunk: list[Images] = []
    for batch in batches:
        chunk.append(batch)
        if sum(len(held.images) for held in chunk) >= images:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _labels(chunk: list[Images]) -> NDArray[np.int64] | None:
    labels = [batch.labels.numpy() for batch in chunk if batch.labels is not None]
    if labels and len(labels) < len(chunk):
        raise ValueError(f"{len(labels)} of {len(chunk)} batches have labels; all or none must have them")
    return np.concatenate(labels) if labels else None


def _arrays(batch: Images) -> tuple[Array, ...]:
    inputs = batch.images if isinstance(batch.images, tuple) else (batch.images,)
    return tuple(np.ascontiguousarray(x.numpy()) for x in inputs)


def _outputs(result: Array | tuple[Array, ...]) -> tuple[Array, ...]:
    return result if isinstance(result, tuple) else (result,)


def _checked(
    name: str, batches: list[tuple[Array, ...]], labels: NDArray[np.int64] | None, num_classes: int | None
) -> tuple[Array, ...]:
    outputs = tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))
    classes = outputs[0].shape[1] if has_classes(outputs[0]) else None
    if num_classes is not None and classes != num_classes:
        raise InputError(
            f"runtime {name} gives {classes} logits an image, and the model is to have {num_classes} classes; is it a "
            f"classifier? If it is, pass `num_classes={classes}`"
        )
    for values in outputs:
        broken = int((~np.isfinite(values.reshape(len(values), -1))).any(axis=1).sum())
        if broken:
            raise FloatingPointError(
                f"runtime {name} returned NaN or infinite values for {broken} of {len(values)} images"
            )
    if labels is not None and classes is not None and labels.max() >= classes:
        raise InputError(
            f"runtime {name} has {classes} classes, but the images have labels up to {labels.max()}; "
            "give a model and images with the same classes"
        )
    return outputs


def _difference(pair: Pair, results: Mapping[str, tuple[Array, ...]]) -> tuple[OutputDifference, ...]:
    name, reference = pair
    differences = []
    for values, expected in zip(results[name], results[reference], strict=True):
        if values.shape != expected.shape:
            raise ValueError(
                f"{name} returns {values.shape[1:]} for an image and {reference} {expected.shape[1:]}: "
                "they can't be compared"
            )
        differences.append(OutputDifference.between(expected, values))
    return tuple(differences)
