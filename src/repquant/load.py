"""A file, ready to run on the runtime that serves it."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repquant.runtimes.interface import FileRuntime


def load(path: str | PathLike[str], *, runtime: str = "onnxruntime", threads: int | None = None) -> FileRuntime:
    """Return a callable that maps the file's input arrays to its output array, or to a tuple of them.

    It is the same engine that proofs and benchmarks use.

    Args:
        path: an .onnx file; for "tensorrt" also an engine, for "litert" a .tflite, for "executorch" a .pte and for
            "ncnn" a .param file.
        runtime: "onnxruntime", "openvino", "tensorrt", "litert", "executorch" or "ncnn"; it has to be installed.
        threads: of the CPU; None leaves the choice to the runtime.

    Raises:
        InputError: a runtime that is not known or not installed, or a file that it can't load.
    """
    from repquant.runtimes.available import open_runtime

    return open_runtime(runtime, Path(path), threads)
