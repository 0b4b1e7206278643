"""Where images come from: class folders, tar shards, a plain folder of images, or the set in the package."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repquant.choices import Split
from repquant.data.builtin_set import BuiltinSet
from repquant.data.decoding import ChooseCrop, decode, read_bytes
from repquant.data.folder_index import EXTENSIONS, Listing, index_class_folders, list_folder
from repquant.data.shards import open_shards, read_classes
from repquant.errors import InputError

_LAYOUT = "expected <data>/train/<class>/<image> and <data>/val/<class>/<image>"


class ImageSource(Protocol):
    """Images of one split in a fixed order; indices run from 0 to len - 1."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names by label; None for unlabeled images."""

    def __len__(self) -> int: ...

    def image(self, index: int, choose_crop: ChooseCrop | None = None) -> Image.Image:
        """The decoded image as RGB, or the chosen crop of it; raises UnreadableImageError."""

    def label(self, index: int) -> int | None:
        """The index of the image's class in `classes`; None for unlabeled images."""

    def name(self, index: int) -> str:
        """Unique within the source and the same on every machine."""

    def read_bytes(self, index: int) -> bytes:
        """The content as it is stored; raises UnreadableImageError."""


@dataclass(frozen=True)
class ImageFolder:
    """Image files under `folder`, by the names that `open_split` found there.

    Args:
        folder: the folder that the names are relative to.
        names: `class/file`, or `file` when unlabeled.
        labels: one per name; None for unlabeled images.
        classes: class names by label; None for unlabeled images.
    """

    folder: Path
    names: Sequence[str]
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int, choose_crop: ChooseCrop | None = None) -> Image.Image:
        """The decoded image as RGB, or the chosen crop of it; raises UnreadableImageError."""
        return decode(self.read_bytes(index), str(self.folder / self.names[index]), choose_crop)

    def label(self, index: int) -> int | None:
        """The index of the image's class in `classes`; None for unlabeled images."""
        return None if self.labels is None else int(self.labels[index])

    def name(self, index: int) -> str:
        """The file's path below `folder`, with forward slashes."""
        return self.names[index]

    def read_bytes(self, index: int) -> bytes:
        """The content of the file; raises UnreadableImageError."""
        return read_bytes(self.folder / self.names[index])


def open_split(data: str | Path, split: Split) -> ImageSource:
    """Open one split of `data`: "builtin", or a folder.

    In `<data>/<split>` every subfolder is a class, its label the rank of its name among the subfolders
    (torchvision's `ImageFolder`). Images that lie there directly, without class folders, are an unlabeled source.
    Where neither is there, `<data>/<split>/*.tar` are shards as `repquant.data.shards` describes them. Images
    directly in a `<data>` without splits are an unlabeled training split. Hidden files and folders are ignored.

    Raises:
        InputError: the folder or the split is missing, there is no image in it, a shard is damaged, or the classes of
            the two splits differ, which would give the same label two meanings.
    """
    if split not in ("train", "val"):
        raise InputError(f"there is no split {split!r}; choose train or val")
    if data == "builtin":
        return BuiltinSet(split)
    root = Path(data)
    if not root.exists():
        raise InputError(f"data folder {root} does not exist; give a folder with train/ and val/, or 'builtin'")
    if not root.is_dir():
        raise InputError(f"data {root} is a file; unpack it and give the folder with train/ and val/, or 'builtin'")
    if (root / split).is_dir():
        _check_same_classes(root)
        return _open_split_folder(root / split)
    return _open_plain_folder(root, split)


def _open_split_folder(folder: Path) -> ImageSource:
    listing = list_folder(folder)
    shards = _shards(listing)
    if shards:
        return open_shards(folder, shards)
    index = index_class_folders(folder, listing.folders)
    if len(index.names) > 0:
        return ImageFolder(folder, index.names, index.labels, tuple(listing.folders))
    if listing.images:
        return ImageFolder(folder, listing.images)
    other_files = len(listing.other_files) + index.other_files
    if other_files:
        raise InputError(
            f"none of the {other_files} files in {folder} and its class folders is an image; "
            f"image files end in {', '.join(EXTENSIONS)}"
        )
    raise InputError(f"no images in {folder}: it is empty; {_LAYOUT}")


def _shards(listing: Listing) -> list[str]:
    """Names of the tar files in a folder, unless it holds images in another form, next to which they are downloads."""
    if listing.folders or listing.images:
        return []
    return [name for name in listing.other_files if name.endswith(".tar")]


def _open_plain_folder(root: Path, split: Split) -> ImageFolder:
    """The images directly in `root`, which has no folder named `split`."""
    listing = list_folder(root)
    has_splits = not {"train", "val"}.isdisjoint(listing.folders)
    if listing.images and split == "train" and not has_splits:
        return ImageFolder(root, listing.images)
    if listing.images and not has_splits:
        raise InputError(
            f"{root} holds images without labels, which can calibrate but not measure accuracy; "
            f"put labeled ones under {root / 'val'}/<class>/"
        )
    found = [f"{folder}/" for folder in listing.folders[:5]]
    found += ["..."] if len(listing.folders) > 5 else []
    found += [f"{len(listing.images)} images"] if listing.images else []
    found += [f"{len(listing.other_files)} other files"] if listing.other_files else []
    raise InputError(f"no {split}/ in {root}; found {', '.join(found) or 'nothing: it is empty'}; {_LAYOUT}")


def _check_same_classes(root: Path) -> None:
    train, val = (_classes(root / split) if (root / split).is_dir() else () for split in ("train", "val"))
    if train and val and train != val:
        only = {"train": sorted(set(train) - set(val)), "val": sorted(set(val) - set(train))}
        differing = "; ".join(f"only in {split}/: {_shorten(names)}" for split, names in only.items() if names)
        raise InputError(
            f"train/ and val/ in {root} have different classes, so their labels would disagree "
            f"({differing or 'their order differs'}); remove or add class folders (an empty one will do)"
        )


def _classes(folder: Path) -> tuple[str, ...]:
    """Class names of a split by label; empty where it has none."""
    listing = list_folder(folder)
    return read_classes(folder) if _shards(listing) else tuple(listing.folders)


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
