"""Where the index of a large data set is kept between runs: the user's cache folder, never the data folder.

A cache is a help, not a part of the data: one that can't be read or written is passed over in silence.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from time import time_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repquant.atomic import replace_file
from repquant.errors import InputError

Arrays = Mapping[str, NDArray[Any]]

Stamp = tuple[int, int, int, int]

LEAST_IMAGES = 10_000
"""Smaller sets are listed in a moment and leave no file behind."""

UNSETTLED: Stamp = (-1, -1, -1, -1)
"""Stored in place of a stamp that can't be relied on; nothing has it."""

# What changed a moment before it was read may change again within the same tick of the file system's clock (2 s on
# FAT), which its times would not show.
_SETTLED_NS = 2_000_000_000


def cache_file(folder: Path, kind: str) -> Path:
    """Where the index of `folder` is: `repquant/<kind>-<hash of its path>.npz` in the user's cache folder.

    Args:
        folder: split of the data.
        kind: kind of index; its version is part of it.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    return caches / "repquant" / f"{kind}-{digest[:32]}.npz"


def stamp(path: Path) -> Stamp | None:
    """What a file or folder has for as long as its content is the same; None where it changed too recently to tell.

    It is taken before the content is read. The time of modification alone would not do: rsync and tar set it back to
    that of the original after they have changed the content. The time of the last change can't be set.

    Raises:
        OSError: there is no such file.
    """
    status = path.stat()
    if time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) <= _SETTLED_NS:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size


def load(file: Path) -> Arrays | None:
    """The arrays in `file`; None where there is no such file or it is damaged."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception:  # numpy's and zipfile's readers raise almost anything on a damaged file
        return None


def store(file: Path, arrays: Arrays) -> None:
    """Replace `file` by these arrays, or leave it as it is where it can't be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(file) as temporary:
            np.savez(temporary, allow_pickle=False, **arrays)
    except (OSError, InputError):
        pass
