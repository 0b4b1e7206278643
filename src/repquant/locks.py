"""Locks that end with their process, however it ends: the system lets go of them."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from repquant.errors import InputError, shortened

_LOCK = ".lock"
_held: set[int] = set()


def _let_go() -> None:
    """Close the locks of the parent in a forked process: a worker may outlive a process that is killed."""
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def hold(path: Path) -> int | None:
    """Lock a file or folder that was just made; return a handle for `release`, None when another process removed it.

    Where the file system has no locks, the handle holds none.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX)
    if not _is_at(handle, path):
        os.close(handle)
        return None
    _held.add(handle)
    return handle


def release(handle: int) -> None:
    """Let go of what `hold` gave; in a forked process, which has let go already, nothing happens."""
    if handle in _held:
        _held.discard(handle)
        os.close(handle)


@contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """Tell whether nobody holds a file or folder any more, so that a killed process left it; nobody can in the block.

    False also where nobody knows: it is not there, not for this user, or the file system has no locks.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for the same out of a folder for the time of the block; it is made where missing.

    Raises:
        InputError: another process is in it, which the message names; or the folder can't be made or written.
    """
    path = folder / _LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _open_lock(path)
    except BlockingIOError:
        raise InputError(
            f"output folder {folder} is in use by {_holder(path)}; wait until it has ended, or choose another folder"
        ) from None
    except FileExistsError as error:
        raise InputError(f"output {folder} is a file; give a folder") from error
    except OSError as error:
        raise InputError(f"can't make the output folder {folder}: {error.strerror}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        release(handle)


def is_lock(path: Path) -> bool:
    """Whether this is what `sole_user` leaves in a folder when it is killed."""
    return path.name == _LOCK


def _open_lock(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise
        except OSError:
            pass  # a file system without locks
        if _is_at(handle, path):
            break
        os.close(handle)  # the one before removed it
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
    _held.add(handle)
    return handle


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _holder(path: Path) -> str:
    try:
        return shortened(path.read_text(encoding="utf-8", errors="replace")) or "another process"
    except OSError:
        return "another process"
