"""The machine and the versions that a measurement belongs to."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any

import torch

from repquant import __version__
from repquant.runtimes.cpu import cpu_model, int8_flags, read_cpuinfo
from repquant.runtimes.executed import NamesKernels

_PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "openvino")


def environment(engines: Mapping[str, object] = MappingProxyType({})) -> dict[str, object]:
    """Return what a reader needs to judge a measurement; nothing in it names a user, a host or a path.

    `integer_kernels` holds, by the name of each engine that tells, the kernels that it multiplied integers with.
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
        "cpu_int8_flags": list(int8_flags(cpuinfo)),
        "integer_kernels": {
            name: engine.integer_kernels() for name, engine in engines.items() if isinstance(engine, NamesKernels)
        },
        "cores": _usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def machine_lines(facts: Mapping[str, Any], load_average: float) -> list[str]:
    """Return the Markdown list that goes under a measured table: the machine, its load before the start, the versions.

    Args:
        facts: as `environment` gives them.
        load_average: of the last minute, before the measurement began.
    """
    flags = f" ({', '.join(facts['cpu_int8_flags'])})" if facts["cpu_int8_flags"] else ""
    versions = {"repquant": facts["repquant"], "python": facts["python"], **facts["packages"]}
    return [
        f"- {facts['cpu'] or facts['machine']}{flags}, {facts['cores']} cores, {facts['torch_threads']} threads in "
        f"torch, load average {load_average} before the start",
        f"- {', '.join(f'{name} {version}' for name, version in versions.items() if version is not None)}",
    ]


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
