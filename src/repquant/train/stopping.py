"""Stopping on request: SIGTERM, which schedulers send before they take a machine away, and Ctrl-C."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from repquant.signals import end_with


class StoppedError(BaseException):
    """The training was asked to stop, and can be resumed. The command line exits with 75 (EX_TEMPFAIL).

    No Exception, as KeyboardInterrupt is none: it may come while a file is read, and does not mean that it is damaged.
    """


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise StoppedError in the block on SIGTERM or Ctrl-C, wherever it is; `listening` within goes before it.

    For what surrounds a training: it leaves files whole or not at all, and a resumed run does it again.
    """

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        end_with(StoppedError("stopped as asked; the same run with `resume=True` goes on"))

    with _handling(stop):
        yield


@contextmanager
def listening(is_alone: bool) -> Iterator[StopRequest]:
    """Note SIGTERM and Ctrl-C in the block instead of ending at once; a second Ctrl-C ends at once.

    Args:
        is_alone: False under torchrun, which passes a Ctrl-C on that the process has already had from the terminal:
            there the second one is noted too, and torchrun itself ends a process that takes too long.
    """
    stop = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT and is_alone:
            signal.default_int_handler(number, frame)
        stop.requested = True

    with _handling(note):
        yield stop


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where signals can't be received
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
