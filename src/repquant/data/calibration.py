"""A seeded, stratified, hashed subset of images for calibration."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from repquant.data.datasets import ImageSource
from repquant.data.decoding import UnreadableImageError
from repquant.errors import InputError


@dataclass(frozen=True)
class CalibrationSubset:
    """Which images calibrate, and a hash that says whether two runs used the same ones.

    Args:
        indices: into the source, in the order of the draw: the classes take turns, and the first n of them are what
            `draw` gives for count n.
        seed: what they were drawn with.
        sha256: see `subset_sha256`.
    """

    indices: tuple[int, ...]
    seed: int
    sha256: str


def select(source: ImageSource, count: int, seed: int = 0, *, skip_unreadable: bool = False) -> CalibrationSubset:
    """Choose `count` images as `draw` does, and hash them as `subset_sha256` does.

    Raises:
        InputError: `count` is below 1 or above the number of images.
        UnreadableImageError: a file can't be read and `skip_unreadable` is false.
    """
    if count < 1:
        raise InputError(f"{count} calibration images is too few; give at least 1, 512 is usual")
    if count > len(source):
        raise InputError(f"{count} calibration images were asked for, but there are {len(source)}; give at most that")
    indices = draw(source, count, seed)
    return CalibrationSubset(indices, seed, subset_sha256(source, indices, skip_unreadable=skip_unreadable))


def draw(source: ImageSource, count: int, seed: int = 0) -> tuple[int, ...]:
    """Draw `count` images, at most as many as there are, stratified by class if the source is labeled.

    An image's ticket is SHA-256 of "seed/name". Within a class the images line up by ticket; round r takes the
    r-th of every class, in the order of their tickets, until `count` are drawn. So the counts of two classes differ
    by at most one unless a class runs out, and the draw depends on the seed, the names and the labels alone: not on
    the platform, the order of the source, or a random generator that a new version might change.
    """
    lines = defaultdict(list)
    for index in range(len(source)):
        ticket = hashlib.sha256(f"{seed}/{source.name(index)}".encode(errors="surrogateescape")).digest()
        lines[source.label(index)].append((ticket, index))
    turns = sorted((rank, *place) for line in lines.values() for rank, place in enumerate(sorted(line)))
    return tuple(index for _, _, index in turns[:count])


def subset_sha256(source: ImageSource, indices: Sequence[int], *, skip_unreadable: bool = False) -> str:
    """SHA-256, in hexadecimal, over names and contents of these images in the order of the source.

    Each contributes its name in UTF-8, a zero byte, the length of its content as 8 big-endian bytes, and the content.
    With `skip_unreadable`, one that can't be read contributes its name and the zero byte alone.

    Raises:
        UnreadableImageError: a file can't be read and `skip_unreadable` is false.
    """
    digest = hashlib.sha256()
    for index in sorted(indices):
        digest.update(source.name(index).encode(errors="surrogateescape") + b"\0")
        try:
            content = source.read_bytes(index)
        except UnreadableImageError:
            if not skip_unreadable:
                raise
            continue
        digest.update(len(content).to_bytes(8, "big"))
        digest.update(content)
    return digest.hexdigest()
