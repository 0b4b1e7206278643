"""Where the index of a large data set is kept between runs: the user's cache folder, never the data folder.

A cache is a help, not a part of the data: one that can't be read or written is passed over in silence.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repquant.atomic import replace_file
from repquant.errors import InputError

Arrays = Mapping[str, NDArray[Any]]

LEAST_IMAGES = 10_000
"""Smaller sets are listed in a moment and leave no file behind."""


def cache_file(folder: Path, kind: str) -> Path:
    """Where the index of `folder` is: `repquant/<kind>-<hash of its path>.npz` in the user's cache folder.

    Args:
        folder: split of the data.
        kind: kind of index; its version is part of it.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    return caches / "repquant" / f"{kind}-{digest[:32]}.npz"


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
