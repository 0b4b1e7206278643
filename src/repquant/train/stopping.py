"""Stopping on request: SIGTERM, which schedulers send before they take a machine away, and Ctrl-C."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StoppedError(Exception):
    """The training was asked to stop, and can be resumed. The command line exits with 75 (EX_TEMPFAIL)."""


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def listening(is_alone: bool) -> Iterator[StopRequest]:
    """Note SIGTERM and Ctrl-C in the block instead of ending at once; a second Ctrl-C ends at once.

    Args:
        is_alone: False under torchrun, which passes a Ctrl-C on that the process has already had from the terminal:
            there the second one is noted too, and torchrun itself ends a process that takes too long.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # where signals can't be received
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT and is_alone:
            signal.default_int_handler(number, frame)
        stop.requested = True

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
