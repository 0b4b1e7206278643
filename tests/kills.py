"""Kill a process at a moment that a seed decides, and no clock.

What a killed process leaves depends on what it has done to files until then. So a moment is an event that Python tells
of (PEP 578), which include all that a process does to files, and two runs that do the same have the same events. Where
the event is that a file is opened to be written, the process dies in the middle of what it writes: the system ends it
at the byte that its limit for files names.
"""

import json
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_CHANGES = {
    "os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate",
    "shutil.copyfile", "shutil.move", "shutil.rmtree", "tempfile.mkdtemp", "tempfile.mkstemp",
}  # fmt: skip
_MOST_BYTES = 5000  # that a file gets; those of the tests have some more


@dataclass(frozen=True)
class Events:
    """How many a whole run has, and how many of them change files."""

    all: int
    changes: int

    def moment(self, dice: random.Random) -> "Moment":
        """Draw one of all events, or of those that change files."""
        changes_files = dice.random() < 0.5
        number = dice.randrange(self.changes if changes_files else self.all)
        return Moment(number, changes_files, dice.randrange(_MOST_BYTES))


@dataclass(frozen=True)
class Moment:
    """The event with a number, from 0 on, of those that change files or of all; and where a write ends at it."""

    number: int
    changes_files: bool
    bytes: int


class _Hook:
    def __init__(self, moment: Moment | None) -> None:
        self._moment, self._all, self._changes, self._is_due = moment, 0, 0, False

    @property
    def events(self) -> Events:
        return Events(self._all, self._changes)

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in ("os.kill", "resource.setrlimit"):  # from here
            return
        if self._is_due:
            os.kill(os.getpid(), signal.SIGKILL)
        is_write = event == "open" and bool(int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        is_change = is_write or event in _CHANGES
        if self._moment and (is_change or not self._moment.changes_files):
            self._is_due = self._moment.number == (self._changes if self._moment.changes_files else self._all)
        self._all += 1
        self._changes += is_change
        if self._is_due and is_write:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._moment.bytes, resource.RLIM_INFINITY))
        elif self._is_due:
            os.kill(os.getpid(), signal.SIGKILL)


def fork(work: Callable[[], int], moment: Moment | None, events: Path | None = None) -> int:
    """Do work in a fork of this process, which is killed at a moment; return its process id.

    Args:
        work: gives the exit status.
        moment: None for a run that is left alone.
        events: file to write, once the work is done, what `read_events` reads.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            hook = _Hook(moment)
            sys.addaudithook(hook)
            status = work()
            counted = hook.events
            if events is not None:
                events.write_text(json.dumps([counted.all, counted.changes]))
        finally:
            os._exit(status)
    return child


def read_events(path: Path) -> Events:
    return Events(*json.loads(path.read_text()))


def ended_by_itself(child: int) -> int | None:
    """Wait for a process; return its exit status, None when it was killed."""
    _, status = os.waitpid(child, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
