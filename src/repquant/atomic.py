"""Files and folders that exist whole or not at all."""

import errno
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType
from typing import NoReturn

from repquant.errors import InputError
from repquant.locks import abandoned, hold, release
from repquant.signals import end_with

_RETIRED = ".old"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that is renamed onto it when the block succeeds.

    When the block raises, or SIGTERM ends it, the temporary file is removed and an existing `path` stays as it was;
    folders above it are made only at the end. Temporary files for the same `path` that killed processes left are
    removed.

    Raises:
        InputError: the folder of `path` can't be written, or made.
    """
    with replace_files(path) as (temporary,):
        yield temporary


@contextmanager
def replace_files(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Yield a temporary path for each of several files that belong together; see `replace_file`.

    None is replaced before all are written. Then they are renamed one right after the other, in the order given.

    Raises:
        InputError: the folder of a path can't be written, or made.
    """
    real = [_real(path) for path in paths]
    with _sigterm_raises(), ExitStack() as stack:
        temporaries = tuple(stack.enter_context(_temporary_file(path)) for path in real)
        with _naming(real[0]):
            yield temporaries
            for temporary in temporaries:
                _sync(temporary)
                temporary.chmod(0o666 & ~_umask())
            for path in real:
                path.parent.mkdir(parents=True, exist_ok=True)
            for temporary, path in zip(temporaries, real, strict=True):
                temporary.replace(path)


@contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    """Yield an empty file that will be renamed to `path`, and remove it if it was not."""
    ancestor = _nearest_above(path)
    _remove_files(path, ancestor)
    temporary, handle = _make_held(ancestor, partial(_make_file, path, ancestor))
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        release(handle)


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False, marker: str) -> Iterator[Path]:
    """Yield an empty staging folder that becomes `path` when the block succeeds.

    When the block raises, or SIGTERM ends it, nothing is left: an existing `path` is replaced, and folders above it are
    made, only at the end. What killed processes left is removed, or brought back where it is all that there is. Where
    `path` is a link, the folder that it leads to is replaced.

    Args:
        path: folder to make.
        overwrite: replace an existing folder, but only one that is empty or holds a file named `marker`: a mistyped
            path must not cost anybody their own files.
        marker: name of a file that all folders made here hold.

    Raises:
        InputError: `path` exists and may not be replaced, or its parent can't be written; or it was made by another
            process meanwhile, and then the results are beside it, under a name that the message says.
    """
    path = _real(path)
    ancestor = _nearest_above(path)
    _remove_folders(path, ancestor)
    if path.exists():
        _check_replaceable(path, overwrite, marker)
    with _sigterm_raises():
        staging, handle = _make_held(ancestor, partial(_make_folder, path, ancestor))
        retired = _retired(staging)
        try:
            with _naming(path, staging):
                yield staging
            staging.chmod(0o777 & ~_umask())
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not overwrite and any(path.iterdir()):
                _keep_beside(staging, path)
            if path.exists():
                path.replace(retired)
            staging.replace(path)
        finally:
            if retired.exists() and not path.exists():
                retired.replace(path)
            for leftover in (staging, retired):
                shutil.rmtree(leftover, ignore_errors=True)
            release(handle)


@contextmanager
def _naming(path: Path, staging: Path | None = None) -> Iterator[None]:
    """Name what is being written in the error of a full disk, which has no name or one that is about to vanish."""
    try:
        yield
    except OSError as error:
        is_staged = staging and error.filename and Path(error.filename).is_relative_to(staging)
        if error.errno in _NO_ROOM and (error.filename is None or is_staged):
            error.filename = str(path)
        raise


def _real(path: Path) -> Path:
    """Without links and "..": what is renamed is the file or folder itself, and stays where a link leads to."""
    return Path(os.path.realpath(path))


def _nearest_above(path: Path) -> Path:
    """Return the nearest folder above that exists; "/" has none above it."""
    return next((folder for folder in path.parents if folder.exists()), path)


def _make_file(path: Path, ancestor: Path) -> Path:
    handle, name = tempfile.mkstemp(dir=ancestor, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    return Path(name)


def _make_folder(path: Path, ancestor: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=ancestor, prefix=f".{path.name}."))


def _make_held(folder: Path, make: Callable[[], Path]) -> tuple[Path, int]:
    """Make something temporary and hold it, so that nobody takes it for a leftover."""
    while True:
        try:
            temporary = make()
        except OSError as error:
            raise _cannot_write(folder, error) from error
        handle = hold(temporary)
        if handle is not None:  # else another process cleaned up in between
            return temporary, handle


def _leftovers(path: Path, folder: Path, suffix: str) -> list[Path]:
    """Return what may be left in a folder by processes that were killed while they wrote `path`."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}{re.escape(suffix)}")
    try:
        names = os.listdir(folder)  # noqa: PTH208  # not an object for each of many files
    except OSError:
        return []
    return [folder / name for name in sorted(names) if pattern.fullmatch(name)]


def _remove_files(path: Path, ancestor: Path) -> None:
    for temporary in _leftovers(path, ancestor, path.suffix):
        with abandoned(temporary) as is_left:
            if is_left:
                temporary.unlink(missing_ok=True)


def _remove_folders(path: Path, ancestor: Path) -> None:
    """Remove leftovers, and bring back the folder that a killed process had set aside to put another in its place."""
    for staging in _leftovers(path, ancestor, ""):
        with abandoned(staging) as is_left:
            if is_left:
                if _retired(staging).exists() and not path.exists():
                    _retired(staging).replace(path)
                shutil.rmtree(staging, ignore_errors=True)
    for retired in _leftovers(path, ancestor, _RETIRED):
        if path.exists() and not retired.with_suffix("").exists():  # else a process is about to put another in place
            shutil.rmtree(retired, ignore_errors=True)


def _retired(staging: Path) -> Path:
    return staging.with_name(f"{staging.name}{_RETIRED}")


def _keep_beside(staging: Path, path: Path) -> NoReturn:
    """Keep a result whose place was taken while it was made."""
    numbers = (path.with_name(f"{path.name}-{number}") for number in count(2))
    beside = next(other for other in numbers if not other.exists())
    staging.replace(beside)
    raise InputError(
        f"output folder {path} appeared while this ran, and is of another run; the results are in {beside}"
    )


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM in the block into SystemExit, unless somebody else, a training for one, listens to it already."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
        end_with(SystemExit(128 + number))

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _check_replaceable(path: Path, overwrite: bool, marker: str) -> None:
    if not path.is_dir():
        raise InputError(f"output {path} is a file; give a folder")
    if not overwrite:
        raise InputError(f"output folder {path} exists; choose another one or pass `overwrite=True` to replace it")
    if any(path.iterdir()) and not (path / marker).is_file():
        raise InputError(
            f"output folder {path} holds files but no {marker}: it is not of an earlier run and is not replaced; "
            "choose another one or remove it yourself"
        )
    if path == Path(path.anchor) or path.is_mount() or Path.cwd().is_relative_to(path):
        raise InputError(f"output folder {path} can't be replaced as a whole; give a folder inside it")


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(folder: Path, error: OSError) -> InputError:
    return InputError(f"can't write to {folder}: {error.strerror}; choose one that is writable")
