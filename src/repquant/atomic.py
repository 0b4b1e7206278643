"""Files and folders that exist whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from repquant.errors import InputError


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that is renamed onto it when the block succeeds.

    When the block raises, the temporary file is removed and an existing `path` stays as it was.

    Raises:
        InputError: the folder of `path` does not exist or can't be written.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as error:
        raise _cannot_write(path.parent, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty staging folder that becomes `path` when the block succeeds.

    When the block raises, the staging folder is removed; an existing `path` is replaced only at the end.

    Raises:
        InputError: `path` exists and `overwrite` is false, or its parent can't be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"output folder {path} exists; choose another one or pass --overwrite to replace it")
    if path.exists() and not path.is_dir():
        raise InputError(f"output {path} is a file; give a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise _cannot_write(path.parent, error) from error
    try:
        yield staging
        staging.chmod(0o777 & ~_umask())
        if path.exists():
            retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            path.replace(retired / "old")
            staging.replace(path)
            shutil.rmtree(retired)
        else:
            staging.replace(path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(folder: Path, error: OSError) -> InputError:
    return InputError(f"can't write to {folder}: {error.strerror}; choose a folder that exists and is writable")
