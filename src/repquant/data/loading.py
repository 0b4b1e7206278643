"""Batches of normalized images from a source, in order."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from repquant.data.datasets import ImageSource
from repquant.data.decoding import UnreadableImageError
from repquant.data.transforms import EvalTransform
from repquant.errors import InputError, visible

# Sent to all processes of a terminal, a job or a torchrun: the main one decides what they mean, and needs its workers
# until then. Where a process can't ask who sent a signal (macOS), SIGTERM ends the workers.
_FOR_THE_MAIN_PROCESS = {signal.SIGINT, signal.SIGTERM} if hasattr(signal, "sigwaitinfo") else {signal.SIGINT}


@dataclass(frozen=True)
class Batch:
    """Images that follow each other in the source.

    Args:
        images: float32 (N, 3, H, W), normalized, contiguous.
        labels: int64 (N,); None for an unlabeled source.
        skipped: names of the unreadable images that would have been in this batch; they are not part of N.
    """

    images: Tensor
    labels: Tensor | None
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Example:
    """One image, for a person.

    Args:
        name: in the source, with what can't be printed written out.
        label: name of its class; None in an unlabeled source.
        pixels: uint8 (3, H, W), as the network sees it before it is normalized; None where it is no picture.
    """

    name: str
    label: str | None
    pixels: Tensor | None


class Loader:
    """Iterate over a source in batches, any number of times, always in the same order.

    A batch with unreadable images is shorter than `batch_size`; one with nothing else is left out.

    Args:
        source: where the images come from.
        transform: makes them equal in size, and normalizes them.
        batch_size: images a batch; the last one may be shorter.
        workers: processes that decode; 0 decodes in this one.
        skip_unreadable: go on without images that can't be read, and list them in `skipped`.
        indices: which images of the source, in this order; all when None.

    Attributes:
        images: number of images asked for, unreadable ones included.
        classes: their names by label; None for an unlabeled source.
        transform: as it was given.
        skipped: name -> reason of the unreadable images met so far.

    Raises:
        InputError: an argument is out of its range; while iterating: an image can't be read and `skip_unreadable` is
            false, or none can be read.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: EvalTransform,
        batch_size: int,
        workers: int = 0,
        skip_unreadable: bool = False,
        indices: Sequence[int] | None = None,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch size {batch_size} is not positive; give at least 1")
        if workers < 0:
            raise InputError(f"{workers} workers is negative; give 0 to decode in the main process, or more")
        chosen = range(len(source)) if indices is None else indices
        if len(chosen) == 0:
            raise InputError("there are no images to load: choose at least one")
        if min(chosen) < 0 or max(chosen) >= len(source):
            raise InputError(f"indices {min(chosen)}..{max(chosen)} are outside 0..{len(source) - 1}")
        self.images = len(chosen)
        self.classes = source.classes
        self.transform = transform
        self.skipped: dict[str, str] = {}
        self._source = source
        self._chosen = chosen
        self._skip_unreadable = skip_unreadable
        self._batches = decode_ahead(_Slices(source, transform, chosen, batch_size), workers)

    def examples(self, places: Iterable[int]) -> list[Example]:
        """Decode images again that a pass gave, by their places in it: unreadable ones do not count."""
        source, given = self._source, self._chosen
        if self.skipped:
            given = [index for index in given if source.name(index) not in self.skipped]
        return [
            Example(
                visible(source.name(index), keep=""),
                None if (label := source.label(index)) is None else self.class_name(label),
                self.transform(source.image(index)),
            )
            for index in (given[place] for place in places)
        ]

    def class_name(self, label: int) -> str:
        """Return the name of a class, or its number where the source has no name for it."""
        classes = self._source.classes or ()
        return visible(classes[label], keep="") if label < len(classes) else str(label)

    def __len__(self) -> int:
        """Number of batches, if none consists of unreadable images only."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        is_empty = True
        for decoded in self._batches:
            names = decoded.note_failures(self.skipped, self._skip_unreadable)
            if len(decoded.pixels) > 0:
                is_empty = False
                yield Batch(self.transform.normalize(decoded.pixels), decoded.labels, names)
        if is_empty:
            name, reason = next(iter(self.skipped.items()))
            raise InputError(
                f"none of the {self.images} images can be read (the first, {name}: {reason}); check the data folder"
            )


@dataclass(frozen=True)
class DecodedBatch:
    """What a worker hands over: bytes, because floats would be four times as much to copy between processes.

    Args:
        pixels: uint8 (N, 3, H, W), of the readable images.
        labels: int64 (N,); None for an unlabeled source.
        failures: name and error of each unreadable image.
    """

    pixels: Tensor
    labels: Tensor | None
    failures: list[tuple[str, UnreadableImageError]]

    def note_failures(self, skipped: dict[str, str], skip_unreadable: bool) -> tuple[str, ...]:
        """Add the unreadable images to `skipped`, name -> reason, and return their names.

        Raises:
            UnreadableImageError: there is one and `skip_unreadable` is false.
        """
        for name, error in self.failures:
            if not skip_unreadable:
                raise error
            skipped[name] = error.reason
        return tuple(name for name, _ in self.failures)

    def pin_memory(self) -> Self:
        """Return the batch in memory that a GPU can read by itself; torch's loader calls this."""
        return replace(
            self, pixels=self.pixels.pin_memory(), labels=None if self.labels is None else self.labels.pin_memory()
        )


def decode_batch(source: ImageSource, transform: EvalTransform, indices: Sequence[int]) -> DecodedBatch:
    """Decode images of a source, in the order of the indices, and make them equal in size."""
    pixels = torch.empty(len(indices), 3, *transform.size, dtype=torch.uint8)
    labels: list[int | None] = []
    failures: list[tuple[str, UnreadableImageError]] = []
    for index in indices:
        try:
            pixels[len(labels)] = _pixels(source, transform, index)
        except UnreadableImageError as error:
            failures.append((source.name(index), error))
        else:
            labels.append(source.label(index))
    is_labeled = source.classes is not None
    return DecodedBatch(pixels[: len(labels)], torch.tensor(labels) if is_labeled else None, failures)


def decode_ahead(
    batches: Dataset[DecodedBatch], workers: int, items: Sequence[int] | None = None, pin_memory: bool = False
) -> DataLoader[DecodedBatch]:
    """Items of a dataset, each a batch, in order, two a worker decoded ahead.

    Args:
        batches: item i is a batch.
        workers: processes that decode; 0 decodes in this one.
        items: which ones; all when None.
        pin_memory: for the fastest way to a GPU.
    """
    return _AheadLoader(
        batches,
        batch_size=None,  # an item of the dataset is a batch
        sampler=items,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_main_process,
        generator=torch.Generator(),  # else every pass would advance torch's global random state
    )


class _AheadLoader(DataLoader[DecodedBatch]):
    """Starts its workers with the signals for the main process blocked: one may arrive before they can block it."""

    def __iter__(self) -> _BaseDataLoaderIter:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_MAIN_PROCESS)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def check_worker_number_rationality(self) -> None:
        """Do not warn of more workers than cores: how many are allowed is said where they are asked for."""


class _Slices(Dataset[DecodedBatch]):
    """Item i is the i-th batch of the indices."""

    def __init__(self, source: ImageSource, transform: EvalTransform, indices: Sequence[int], batch_size: int) -> None:
        self._source = source
        self.transform = transform
        self._indices = indices
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._indices) // self._batch_size)

    def __getitem__(self, batch: int) -> DecodedBatch:
        if not 0 <= batch < len(self):
            raise IndexError(batch)
        start = batch * self._batch_size
        return decode_batch(self._source, self.transform, self._indices[start : start + self._batch_size])


def _pixels(source: ImageSource, transform: EvalTransform, index: int) -> Tensor:
    image = source.image(index)
    try:
        return transform(image)
    except InputError as error:
        raise UnreadableImageError(source.name(index), str(error)) from error


def _leave_signals_to_the_main_process(_: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_MAIN_PROCESS)
    parent = multiprocessing.parent_process()
    if parent and signal.SIGTERM in _FOR_THE_MAIN_PROCESS:
        threading.Thread(target=_end_when_told_by, args=(parent.pid,), daemon=True).start()


def _end_when_told_by(parent: int) -> None:
    """A main process that crashes sends its workers a SIGTERM, and waits for them without end."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _as_it_is(decoded: Any) -> Any:
    return decoded
