"""Files and folders that exist whole or not at all."""

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from repquant.errors import InputError


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that is renamed onto it when the block succeeds.

    When the block raises, or SIGTERM ends it, the temporary file is removed and an existing `path` stays as it was.

    Raises:
        InputError: the folder of `path` does not exist or can't be written.
    """
    path = Path(path)
    with _sigterm_raises():
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
def new_folder(path: Path, *, overwrite: bool = False, marker: str) -> Iterator[Path]:
    """Yield an empty staging folder that becomes `path` when the block succeeds.

    When the block raises, or SIGTERM ends it, nothing is left: an existing `path` is replaced, and folders above it are
    made, only at the end.

    Args:
        path: folder to make.
        overwrite: replace an existing folder, but only one that is empty or holds a file named `marker`: a mistyped
            path must not cost anybody their own files.
        marker: name of a file that all folders made here hold.

    Raises:
        InputError: `path` exists and may not be replaced, or its parent can't be written.
    """
    path = Path(path)
    if path.exists():
        _check_replaceable(path, overwrite, marker)
    ancestor = next(folder for folder in path.parents if folder.exists())
    with _sigterm_raises():
        try:
            staging = Path(tempfile.mkdtemp(dir=ancestor, prefix=f".{path.name}."))
        except OSError as error:
            raise _cannot_write(ancestor, error) from error
        retired = staging.with_name(f"{staging.name}.old")
        try:
            yield staging
            staging.chmod(0o777 & ~_umask())
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                path.replace(retired)
            staging.replace(path)
        finally:
            if retired.exists() and not path.exists():
                retired.replace(path)
            for leftover in (staging, retired):
                shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM in the block into SystemExit, unless somebody else, a training for one, listens to it already."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _check_replaceable(path: Path, overwrite: bool, marker: str) -> None:
    if not path.is_dir():
        raise InputError(f"output {path} is a file; give a folder")
    if not overwrite:
        raise InputError(f"output folder {path} exists; choose another one or pass --overwrite to replace it")
    if any(path.iterdir()) and not (path / marker).is_file():
        raise InputError(
            f"output folder {path} holds files but no {marker}: it is not of an earlier run and is not replaced; "
            "choose another one or remove it yourself"
        )
    if path.name in ("", "..") or path.is_mount():
        raise InputError(f"output folder {path} can't be replaced as a whole; give a folder inside it")


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(folder: Path, error: OSError) -> InputError:
    return InputError(f"can't write to {folder}: {error.strerror}; choose a folder that exists and is writable")
