"""Labeled images in tar files as the WebDataset library writes them, read by index.

A sample is `<key>.<image extension>` with its label in `<key>.cls` (the number as text), or as "label" or "cls" in
`<key>.json`. Other files of a sample are ignored. `classes.txt` beside the shards, one name per line, names the
classes; without it they are called by their numbers, and the highest label says how many there are.

The library itself reads shards as streams: every worker takes whole files, and an epoch's order, its exact share for
each of several processes and its continuation after an interruption are lost (its indexed reader, wids, is no longer
part of the package). Here the headers are read once, with the standard library, and cached; afterwards every image
is one read at its offset. So shards are a source like any other, and no image is lost or doubled whatever the number
of workers and processes. `repquant.data.shard_writing` writes them with the library.
"""

import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repquant.data import index_cache
from repquant.data.decoding import MOST_BYTES, ChooseCrop, UnreadableImageError, decode
from repquant.data.folder_index import EXTENSIONS
from repquant.data.packed_names import PackedNames
from repquant.errors import InputError
from repquant.regular_files import open_regular

CLASSES_FILE = "classes.txt"
_NO_LABEL = -1
_HIGHEST_LABEL = 10**6 - 1  # there is a name for each class up to the highest


@dataclass(frozen=True)
class ShardSource:
    """Images in tar files, in the order of the files and of the samples in them.

    Args:
        folder: the folder of the shards.
        shards: names of the files.
        members: name of each image's member in its file.
        places: int64 (N, 3): the number of the image's shard, where its content starts there, its length in bytes.
        labels: int64 (N,); None for unlabeled images.
        classes: class names by label; None for unlabeled images.
    """

    folder: Path
    shards: Sequence[str]
    members: PackedNames
    places: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.members)

    def image(self, index: int, choose_crop: ChooseCrop | None = None) -> Image.Image:
        """The decoded image as RGB, or the chosen crop of it; raises UnreadableImageError."""
        return decode(self.read_bytes(index), str(self.folder / self.name(index)), choose_crop)

    def label(self, index: int) -> int | None:
        """The index of the image's class in `classes`; None for unlabeled images."""
        return None if self.labels is None else int(self.labels[index])

    def name(self, index: int) -> str:
        """The shard's file name, a slash and the name of the member in it."""
        return f"{self.shards[int(self.places[index, 0])]}/{self.members[index]}"

    def read_bytes(self, index: int) -> bytes:
        """The content of the member; raises UnreadableImageError."""
        shard, offset, size = (int(value) for value in self.places[index])
        if size > MOST_BYTES:
            raise UnreadableImageError(str(self.folder / self.name(index)), f"larger than {MOST_BYTES:,} bytes")
        try:
            with open_regular(self.folder / self.shards[shard]) as stream:  # opened anew: workers share no position
                stream.seek(offset)
                return stream.read(size)
        except OSError as error:
            raise UnreadableImageError(str(self.folder / self.name(index)), str(error.strerror).lower()) from error


class _Shard(NamedTuple):
    """The images of one shard."""

    stamp: index_cache.Stamp | None
    members: PackedNames
    entries: NDArray[np.int64]  # (N, 3): offset, size, label


def open_shards(folder: Path, shards: Sequence[str]) -> ShardSource:
    """Open tar files as one source; the headers of files that did not change come from the cache.

    Args:
        folder: the folder of the shards.
        shards: names of the files, in their order.

    Raises:
        InputError: a shard is damaged, a key has two images, some images have labels and some have none, or a label
            is not a class in `classes.txt`.
    """
    file = index_cache.cache_file(folder, "shards-2")
    known = _load(file)
    listed = {name: _index(folder / name, known.get(name)) for name in shards}
    members = PackedNames.concatenate([each.members for each in listed.values()])
    if len(members) == 0:
        raise InputError(
            f"none of the {len(shards)} tar files in {folder} holds an image; "
            f"a sample is <key>.jpg with its label in <key>.cls; images end in {', '.join(EXTENSIONS)}"
        )
    entries = np.concatenate([each.entries for each in listed.values()])
    if listed.keys() != known.keys() or any(listed[name] is not known[name] for name in shards):
        _store(file, listed, members, entries)
    shard = np.repeat(np.arange(len(shards)), [len(each.members) for each in listed.values()])
    source = ShardSource(folder, shards, members, np.column_stack([shard, entries[:, :2]]), None, None)
    return _with_labels(source, entries[:, 2])


def read_classes(folder: Path) -> tuple[str, ...]:
    """The lines of `classes.txt` in `folder`; empty where there is no such file."""
    file = folder / CLASSES_FILE
    try:
        return tuple(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else ()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can't read {file}: {error}; it holds the name of a class in each line, in UTF-8") from error


def _with_labels(source: ShardSource, labels: NDArray[np.int64]) -> ShardSource:
    unlabeled = np.flatnonzero(labels == _NO_LABEL)
    if len(unlabeled) == len(labels):
        return source
    if len(unlabeled) > 0:
        raise InputError(
            f"{len(unlabeled)} of the {len(labels)} images in {source.folder} have no label (the first: "
            f"{source.name(int(unlabeled[0]))}); write each one's into <key>.cls, or none"
        )
    highest = int(labels.argmax())
    classes = read_classes(source.folder) or tuple(str(label) for label in range(int(labels[highest]) + 1))
    if labels[highest] >= len(classes):
        raise InputError(
            f"{source.name(highest)} in {source.folder} has the label {labels[highest]}, but {CLASSES_FILE} there "
            f"names {len(classes)} classes; labels count from 0, the last is {len(classes) - 1}"
        )
    return ShardSource(source.folder, source.shards, source.members, source.places, labels, classes)


def _index(path: Path, known: _Shard | None) -> _Shard:
    try:
        stamp = index_cache.stamp(path)
        if known is not None and known.stamp == stamp:
            return known
        images, labels = _read_headers(path)
    except (OSError, tarfile.TarError) as error:
        raise _damaged(path, str(error)) from error
    entries = [(image.offset_data, image.size, labels.get(key, _NO_LABEL)) for key, image in images.items()]
    members = PackedNames.pack(image.name for image in images.values())
    return _Shard(stamp, members, np.array(entries, np.int64).reshape(-1, 3))


def _read_headers(path: Path) -> tuple[dict[str, tarfile.TarInfo], dict[str, int]]:
    """The images and the labels in a shard, by key."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    with open_regular(path) as file, tarfile.open(path, "r:", file) as archive:
        for member in archive:
            key, extension = _split_name(member.name)
            if not member.isfile() or not key:
                continue
            if member.issparse():  # may stand for more bytes than there are
                raise _damaged(path, f"{member.name} is stored with holes")
            if extension in EXTENSIONS:
                if key in images:
                    raise _damaged(path, f"{images[key].name} and {member.name} are two images of one sample")
                images[key] = member
            elif extension in (".cls", ".json"):
                content = archive.extractfile(member)
                assert content is not None
                label = _label(path, member.name, content.read())
                if label is not None:
                    labels[key] = label
        _check_end(path, archive)
    return images, labels


def _split_name(member: str) -> tuple[str, str]:
    """Key and extension, as WebDataset has it: the extension starts at the first dot after the last slash."""
    folder, slash, file = member.rpartition("/")
    base, dot, extension = file.partition(".")
    return (folder + slash + base if base else ""), (dot + extension).lower()


def _label(path: Path, member: str, content: bytes) -> int | None:
    """The label in a .cls or .json file; None for JSON without one."""
    try:
        if member.lower().endswith(".cls"):
            label = int(content)
        else:
            fields = json.loads(content)
            found = fields.get("label", fields.get("cls")) if isinstance(fields, dict) else None
            if found is None:
                return None
            label = int(found)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _damaged(path, f"{member} does not hold a number") from error
    if not 0 <= label <= _HIGHEST_LABEL:
        raise _damaged(path, f"the label in {member} is {label}, not from 0 to {_HIGHEST_LABEL}")
    return label


def _check_end(path: Path, archive: tarfile.TarFile) -> None:
    """A complete archive ends in blocks of zeros; tarfile takes one that breaks off between two members for whole."""
    with open_regular(path) as stream:
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise _damaged(path, "it breaks off before its end, or a header in it is damaged")


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"can't read shard {path}: {reason}; copy or write the file again")


def _store(file: Path, listed: Mapping[str, _Shard], members: PackedNames, entries: NDArray[np.int64]) -> None:
    if len(members) < index_cache.LEAST_IMAGES:
        return
    names = PackedNames.pack(listed)
    shards = [(*(each.stamp or index_cache.UNSETTLED), len(each.members)) for each in listed.values()]
    arrays: index_cache.Arrays = {
        "members": members.content,
        "member_starts": members.starts,
        "entries": entries,
        "names": names.content,
        "name_starts": names.starts,
        "shards": np.array(shards, np.int64),
    }
    index_cache.store(file, arrays)


def _load(file: Path) -> dict[str, _Shard]:
    arrays = index_cache.load(file)
    if arrays is None:
        return {}
    try:
        members = PackedNames(arrays["members"], arrays["member_starts"])
        names = PackedNames(arrays["names"], arrays["name_starts"])
        *stamps, counts = arrays["shards"].T.tolist()
        stops = list(accumulate(counts, initial=0))
        return {
            name: _Shard(
                tuple(column[i] for column in stamps),
                members.part(stops[i], stops[i + 1]),
                arrays["entries"][stops[i] : stops[i + 1]],
            )
            for i, name in enumerate(names)
        }
    except (KeyError, ValueError, IndexError):
        return {}
