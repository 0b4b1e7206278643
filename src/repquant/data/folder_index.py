"""Which images a folder of class folders holds: listed once, and listed again only where a class folder changed.

ImageNet has 1.3 million files in 1,000 folders. Adding, removing or renaming a file sets the times of its folder, so
the stamps of 1,000 folders say whether the listing of the last run still holds.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from repquant.data import index_cache
from repquant.data.packed_names import PackedNames
from repquant.errors import InputError

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Listing(NamedTuple):
    """What lies in one folder; names are sorted, hidden ones left out."""

    folders: list[str]
    images: list[str]
    other_files: list[str]


@dataclass(frozen=True)
class FolderIndex:
    """The images of all class folders.

    Args:
        names: `class/file`, sorted within each class.
        labels: int64, the class of each name.
        other_files: number of files in the class folders that are not images.
    """

    names: PackedNames
    labels: NDArray[np.int64]
    other_files: int


class _ClassFolder(NamedTuple):
    stamp: index_cache.Stamp | None
    names: PackedNames
    other_files: int


def list_folder(folder: Path) -> Listing:
    """Sorted by name, whatever order the file system has; one system call for many entries.

    Raises:
        InputError: the folder can't be listed.
    """
    listing = Listing([], [], [])
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    listing.folders.append(entry.name)
                elif entry.name.lower().endswith(EXTENSIONS):
                    listing.images.append(entry.name)
                else:
                    listing.other_files.append(entry.name)
    except OSError as error:
        raise InputError(f"can't list {folder}: {error.strerror}") from error
    for names in listing:
        names.sort()
    return listing


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: what it stands for will be asked for when it is read
        return False


def index_class_folders(folder: Path, classes: Sequence[str]) -> FolderIndex:
    """List the class folders in `folder`, those of the last run that did not change from the cache.

    Args:
        folder: split of the data.
        classes: names of its class folders, in the order of their labels.

    Raises:
        InputError: a class folder can't be listed.
    """
    file = index_cache.cache_file(folder, "folder-2")
    known = _load(file)
    listed = {name: _class_folder(folder, name, known.get(name)) for name in classes}
    names = PackedNames.concatenate([each.names for each in listed.values()])
    changed = listed.keys() != known.keys() or any(listed[name] is not known[name] for name in classes)
    if changed and len(names) >= index_cache.LEAST_IMAGES:
        _store(file, listed, names)
    labels = np.repeat(np.arange(len(classes)), [len(each.names) for each in listed.values()])
    return FolderIndex(names, labels, sum(each.other_files for each in listed.values()))


def _class_folder(folder: Path, name: str, known: _ClassFolder | None) -> _ClassFolder:
    try:
        stamp = index_cache.stamp(folder / name)
    except OSError as error:
        raise InputError(f"can't list {folder / name}: {error.strerror}") from error
    if known is not None and known.stamp == stamp:
        return known
    listing = list_folder(folder / name)
    names = PackedNames.pack(f"{name}/{image}" for image in listing.images)
    return _ClassFolder(stamp, names, len(listing.other_files))


def _store(file: Path, listed: Mapping[str, _ClassFolder], names: PackedNames) -> None:
    classes = PackedNames.pack(listed)
    folders = [(*(each.stamp or index_cache.UNSETTLED), len(each.names), each.other_files) for each in listed.values()]
    arrays: index_cache.Arrays = {
        "names": names.content,
        "name_starts": names.starts,
        "classes": classes.content,
        "class_starts": classes.starts,
        "folders": np.array(folders, np.int64),
    }
    index_cache.store(file, arrays)


def _load(file: Path) -> dict[str, _ClassFolder]:
    arrays = index_cache.load(file)
    if arrays is None:
        return {}
    try:
        names = PackedNames(arrays["names"], arrays["name_starts"])
        classes = PackedNames(arrays["classes"], arrays["class_starts"])
        *stamps, counts, other_files = arrays["folders"].T.tolist()
        stops = np.cumsum(counts).tolist()
        return {
            name: _ClassFolder(stamp, names.part(stop - count, stop), others)
            for name, stamp, stop, count, others in zip(
                classes, zip(*stamps, strict=True), stops, counts, other_files, strict=True
            )
        }
    except (KeyError, ValueError, IndexError):
        return {}
