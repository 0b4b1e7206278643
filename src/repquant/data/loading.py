"""Batches of normalized images from a source, in order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from repquant.data.datasets import ImageSource
from repquant.data.decoding import UnreadableImageError
from repquant.data.transforms import EvalTransform
from repquant.errors import InputError


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
        self.skipped: dict[str, str] = {}
        self._transform = transform
        self._skip_unreadable = skip_unreadable
        self._batches = DataLoader(
            _DecodedBatches(source, transform, chosen, batch_size),
            batch_size=None,  # an item of the dataset is a batch
            num_workers=workers,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # else every pass would advance torch's global random state
        )

    def __len__(self) -> int:
        """Number of batches, if none consists of unreadable images only."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        is_empty = True
        for decoded in self._batches:
            for name, error in decoded.failures:
                if not self._skip_unreadable:
                    raise error
                self.skipped[name] = error.reason
            if len(decoded.pixels) > 0:
                is_empty = False
                names = tuple(name for name, _ in decoded.failures)
                yield Batch(self._transform.normalize(decoded.pixels), decoded.labels, names)
        if is_empty:
            name, reason = next(iter(self.skipped.items()))
            raise InputError(
                f"none of the {self.images} images can be read (the first, {name}: {reason}); check the data folder"
            )


@dataclass(frozen=True)
class _Decoded:
    """What a worker hands over: bytes, because floats would be four times as much to copy between processes."""

    pixels: Tensor  # uint8 (N, 3, H, W)
    labels: Tensor | None
    failures: list[tuple[str, UnreadableImageError]]


class _DecodedBatches(Dataset[_Decoded]):
    """Item i is the i-th batch."""

    def __init__(self, source: ImageSource, transform: EvalTransform, indices: Sequence[int], batch_size: int) -> None:
        self._source = source
        self._transform = transform
        self._indices = indices
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._indices) // self._batch_size)

    def __getitem__(self, batch: int) -> _Decoded:
        if not 0 <= batch < len(self):
            raise IndexError(batch)
        start = batch * self._batch_size
        indices = self._indices[start : start + self._batch_size]
        pixels = torch.empty(len(indices), 3, *self._transform.size, dtype=torch.uint8)
        labels: list[int | None] = []
        failures: list[tuple[str, UnreadableImageError]] = []
        for index in indices:
            try:
                pixels[len(labels)] = self._pixels(index)
            except UnreadableImageError as error:
                failures.append((self._source.name(index), error))
            else:
                labels.append(self._source.label(index))
        is_labeled = self._source.classes is not None
        return _Decoded(pixels[: len(labels)], torch.tensor(labels) if is_labeled else None, failures)

    def _pixels(self, index: int) -> Tensor:
        image = self._source.image(index)
        try:
            return self._transform(image)
        except InputError as error:
            raise UnreadableImageError(self._source.name(index), str(error)) from error


def _as_it_is(decoded: Any) -> Any:
    return decoded
