import platform
import subprocess
import sys

import pytest

from repquant import allocation
from repquant.allocation import keep_freed_memory

FAULTS = """
import resource
import numpy as np
from repquant.allocation import keep_freed_memory

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        np.ones(64 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = faults(20)
assert keep_freed_memory()
faults(2)
print(default, faults(20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc: there is nothing to set")
def test_memory_is_mapped_once():
    # 64 MiB blocks are above the size up to which glibc learns to keep them by itself
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    default, kept = map(int, found.stdout.split())
    assert kept < default / 10


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda _: object())
    assert keep_freed_memory() is False
