"""Where results go, looked at before any work is done for them: nothing that is read is written over."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repquant.errors import InputError

_READ = ("weights", "init_weights", "inserted_bn", "teacher", "model", "data", "calibration_data")
"""Options that name files and folders that are read."""

_SPLITS = ("train", "val")


def output_file(options: Any, suffixes: Sequence[str]) -> Path:
    """Return the path of a file to write; folders above it that are missing are made with it.

    Raises:
        InputError: another suffix, a file that exists and may not be replaced or is read, or a folder that can't be
            written.
    """
    path = Path(options.output)
    if path.suffix not in suffixes:
        raise InputError(f"output {path} does not end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise InputError(f"output {path} is a folder; give a file")
    for name, read in _read(options):
        if path.exists() and read.exists() and path.samefile(read):
            raise InputError(f"output {path} is the file of --{name}, which would be lost; choose another file")
    if path.exists() and not options.overwrite:
        raise InputError(f"output {path} exists; choose another file or pass --overwrite to replace it")
    above = next(folder for folder in Path(os.path.realpath(path)).parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise InputError(f"can't write to {path.parent}; choose a folder that is writable, or can be made")
    return path


def output_folder(options: Any) -> Path:
    """Return the path of a folder to write.

    Raises:
        InputError: it would be a class of the data, or what it replaces holds what is read.
    """
    path = Path(options.output)
    real = Path(os.path.realpath(path))
    for name, read in _read(options):
        folder = Path(os.path.realpath(read))
        if name in ("data", "calibration-data") and any(real.is_relative_to(folder / split) for split in _SPLITS):
            raise InputError(f"output folder {path} is within the images of --{name} and would become a class of them")
        if folder.is_relative_to(real):
            raise InputError(f"output folder {path} holds {read}, which --{name} reads; choose another folder")
    return path


def _read(options: Any) -> list[tuple[str, Path]]:
    """Return the options that name something that is read, and what they name."""
    values = {name: getattr(options, name, "") for name in _READ}
    return [(name.replace("_", "-"), Path(value)) for name, value in values.items() if value not in ("", "builtin")]
