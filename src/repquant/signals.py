"""How a process that is told to end knows it: what a handler raises may leave a library as another exception.

A signal can arrive while a library is being imported or an object deleted. Some of them turn what is raised there into
an error of their own, or print it and go on.
"""

import signal
import sys
from types import FrameType
from typing import Any, NoReturn

_asked: list[BaseException] = []


def end_with(error: BaseException) -> NoReturn:
    """Raise what a handler of a signal ends the process with, and keep it in mind."""
    _asked.append(error)
    raise error


def asked() -> BaseException | None:
    """Return what a handler of a signal raised first since the last `forget`."""
    return _asked[0] if _asked else None


def forget() -> None:
    """Begin anew."""
    _asked.clear()


def listen() -> None:
    """Keep a Ctrl-C in mind from now on, and be silent about exceptions in what is being deleted after it."""
    signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _unless_asked


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    end_with(KeyboardInterrupt())


def _unless_asked(unraisable: Any) -> None:
    if not _asked:
        sys.__unraisablehook__(unraisable)
