"""A measurement in a process of its own, and the memory that it takes there."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

from repquant.allocation import keep_freed_memory

P = ParamSpec("P")
R = TypeVar("R")


def alone(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call the function in a fresh process, so that no measurement inherits memory, threads or caches."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=keep_freed_memory) as process:
        return process.submit(function, *args, **kwargs).result()


def peak_mb() -> float:
    """Return the largest resident set of this process so far.

    Not getrusage's ru_maxrss, which on Linux a process takes over from the one that started it, however large.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kibibytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kibibytes) * 1024 / 1e6
