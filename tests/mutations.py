"""Damage files at random, and watch what a process does with them."""

import random
import resource
import sys
import time
from collections.abc import Callable

from repquant.errors import InputError

_STARTS_A_PROGRAM = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.fork")
_LONGEST_SECONDS, _MOST_BYTES = 20, 2**30
_LONGEST_MESSAGE = 4000

_started: list[str] = []


def _watch(event: str, _arguments: object) -> None:
    if event in _STARTS_A_PROGRAM:
        _started.append(event)


sys.addaudithook(_watch)


def flip(content: bytearray, dice: random.Random) -> None:
    for _ in range(dice.choice((1, 1, 3, 20))):
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)


def replace(content: bytearray, dice: random.Random) -> None:
    start = dice.randrange(len(content))
    content[start : start + dice.randrange(1, 40)] = dice.randbytes(dice.randrange(40))


def cut(content: bytearray, dice: random.Random) -> None:
    del content[dice.randrange(len(content)) :]


def repeat(content: bytearray, dice: random.Random) -> None:
    start, length = dice.randrange(len(content)), dice.randrange(1, 400)
    place = dice.randrange(len(content))
    content[place:place] = content[start : start + length] * dice.choice((1, 2, 50))


def large_numbers(content: bytearray, dice: random.Random) -> None:
    place = dice.randrange(len(content))
    content[place : place + 8] = b"\xff" * dice.choice((1, 2, 4, 8))


MUTATE = (flip, replace, cut, repeat, large_numbers)


def mutated(content: bytes, dice: random.Random) -> bytes:
    changed = bytearray(content)
    dice.choice(MUTATE)(changed, dice)
    return bytes(changed)


class Tries:
    """Counts what becomes of damaged files. A refusal is an InputError that names the file and says why."""

    def __init__(self) -> None:
        self.counts = {"tries": 0, "refusals": 0, "accepted": 0, "failures": 0}
        self.failures: list[str] = []
        self._slowest = 0.0
        self._before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _started.clear()

    def read(self, load: Callable[[], object], name: str) -> None:
        """Try to read a file; `name` is what a refusal has to call it."""
        began, failure = time.process_time(), ""
        try:
            load()
        except InputError as error:
            outcome, message = "refusals", str(error)
            is_said = name in message and 20 < len(message) - len(name) < _LONGEST_MESSAGE
            failure = "" if is_said else f"says {message[:1000]!r}"
        except BaseException as error:
            failure = repr(error)[:1000]
        else:
            outcome = "accepted"
        self._slowest = max(self._slowest, time.process_time() - began)
        self.counts["tries"] += 1
        self.counts["failures" if failure else outcome] += 1
        if failure:
            self.failures.append(f"try {self.counts['tries']}, {name}: {failure}")

    def require_none_failed(self) -> None:
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._before)
        assert not self.failures, "\n".join(self.failures)
        assert not _started
        assert self._slowest < _LONGEST_SECONDS  # of this process, whatever runs beside it
        assert grown < _MOST_BYTES
