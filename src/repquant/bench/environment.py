"""The machine and the versions that a measurement belongs to."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from repquant import __version__
from repquant.runtimes.cpu import cpu_model, read_cpuinfo, vnni_flags

_PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "openvino")


def environment() -> dict[str, object]:
    """Return what a reader needs to judge a measurement; nothing in it names a user, a host or a path.

    A package that is not installed has the version None, and so has a CPU whose model can't be read.
    `cpu_int8_flags` is empty where the CPU has no int8 dot-product instructions, or does not say.
    """
    cpuinfo = read_cpuinfo()
    return {
        "repquant": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": cpu_model(cpuinfo),
        "cpu_int8_flags": list(vnni_flags(cpuinfo)),
        "cores": _usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _usable_cores() -> int:
    """Count the cores that this process may run on, which a container can limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
