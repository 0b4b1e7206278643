"""Where images come from: class folders, a plain folder of images, or the set that ships with the package."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from PIL import Image

from repquant.data.builtin_set import BuiltinSet
from repquant.data.decoding import decode, read_bytes
from repquant.errors import InputError

Split = Literal["train", "val"]
EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_LAYOUT = "expected <data>/train/<class>/<image> and <data>/val/<class>/<image>"


class ImageSource(Protocol):
    """Images of one split in a fixed order; indices run from 0 to len - 1."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names by label; None for unlabeled images."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """The decoded image as RGB; raises UnreadableImageError."""

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
    labels: Sequence[int] | None = None
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Image.Image:
        """The decoded image as RGB; raises UnreadableImageError."""
        return decode(self.folder / self.names[index])

    def label(self, index: int) -> int | None:
        """The index of the image's class in `classes`; None for unlabeled images."""
        return None if self.labels is None else self.labels[index]

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
    Images directly in a `<data>` without splits are an unlabeled training split. Hidden files and folders are
    ignored.

    Raises:
        InputError: the folder or the split is missing, there is no image in it, or the classes of the two splits
            differ, which would give the same label two meanings.
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
        return _open_folder(root / split)
    return _open_plain_folder(root, split)


class _Listing(NamedTuple):
    folders: list[str]
    images: list[str]
    other_files: int


def _open_folder(folder: Path) -> ImageFolder:
    listing = _list(folder)
    names, labels, other_files = [], [], listing.other_files
    for label, class_name in enumerate(listing.folders):
        of_class = _list(folder / class_name)
        names += [f"{class_name}/{file}" for file in of_class.images]
        labels += [label] * len(of_class.images)
        other_files += of_class.other_files
    if names:
        return ImageFolder(folder, names, labels, tuple(listing.folders))
    if listing.images:
        return ImageFolder(folder, listing.images)
    if other_files:
        raise InputError(
            f"none of the {other_files} files in {folder} and its class folders is an image; "
            f"image files end in {', '.join(EXTENSIONS)}"
        )
    raise InputError(f"no images in {folder}: it is empty; {_LAYOUT}")


def _open_plain_folder(root: Path, split: Split) -> ImageFolder:
    """The images directly in `root`, which has no folder named `split`."""
    listing = _list(root)
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
    found += [f"{listing.other_files} other files"] if listing.other_files else []
    raise InputError(f"no {split}/ in {root}; found {', '.join(found) or 'nothing: it is empty'}; {_LAYOUT}")


def _check_same_classes(root: Path) -> None:
    train, val = (set(_list(root / split).folders) if (root / split).is_dir() else set() for split in ("train", "val"))
    if train and val and train != val:
        only = {"train": sorted(train - val), "val": sorted(val - train)}
        differing = "; ".join(f"only in {split}/: {_shorten(names)}" for split, names in only.items() if names)
        raise InputError(
            f"train/ and val/ in {root} have different classes, so their labels would disagree ({differing}); "
            "remove or add class folders (an empty one will do)"
        )


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _list(folder: Path) -> _Listing:
    """Sorted by name, whatever order the file system has; one system call for many entries (ImageNet has 1.3 M)."""
    folders, images, other_files = [], [], 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.name.lower().endswith(EXTENSIONS):
                    images.append(entry.name)
                else:
                    other_files += 1
    except OSError as error:
        raise InputError(f"can't list {folder}: {error.strerror}") from error
    return _Listing(sorted(folders), sorted(images), other_files)
