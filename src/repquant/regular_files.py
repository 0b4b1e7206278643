"""Files that end: a name may also lead to a pipe, which waits for a writer, or to a device, which never ends."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, in binary.

    Raises:
        OSError: it can't be opened, or is none: a folder, a pipe, a socket or a device. Nothing was read then.
    """
    # Without O_NONBLOCK to open a pipe would wait for its other end; on files it means nothing.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return open(handle, "rb")  # noqa: PTH123  # Path.open takes no handle


def require_regular(path: Path) -> None:
    """Accept a file that a library will open by its name.

    Raises:
        OSError: see `open_regular`.
    """
    open_regular(path).close()


def read_regular(path: Path, most: int) -> bytes:
    """Return the content of a file of at most so many bytes.

    Raises:
        OSError: see `open_regular`, or the file has more.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"Larger than {most:,} bytes", str(path))
        return stream.read(size)
