"""Which engines can run here, and what to install for the others. Nothing heavy is imported to find out."""

from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from repquant.errors import InputError
from repquant.runtimes.classifier import Classifier
from repquant.runtimes.interface import FileRuntime


@dataclass(frozen=True)
class Engine:
    """An engine by the module to import and what pip installs it with."""

    module: str
    package: str


ENGINES: dict[str, Engine] = {
    "pytorch": Engine(module="torch", package="repquant"),
    "onnxruntime": Engine(module="onnxruntime", package="repquant[onnxruntime]"),
    "openvino": Engine(module="openvino", package="repquant[openvino]"),
    "tensorrt": Engine(module="tensorrt", package="tensorrt"),  # needs an NVIDIA GPU, so no extra of this package
}


def installed() -> tuple[str, ...]:
    """Return the names of the engines that can run here."""
    return tuple(name for name, engine in ENGINES.items() if _is_installed(engine))


def require(name: str) -> None:
    """Accept the name of an engine that is installed.

    Raises:
        InputError: no engine has this name, or it is not installed; says what to write or to install.
    """
    engine = ENGINES.get(name)
    if engine is None:
        nearest = get_close_matches(name, ENGINES, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise InputError(f"unknown runtime {name!r}; {hint}choose from {', '.join(ENGINES)}")
    if not _is_installed(engine):
        raise InputError(
            f"runtime {name} is not installed; run pip install '{engine.package}', or choose from "
            f"{', '.join(installed())}"
        )


def _is_installed(engine: Engine) -> bool:
    """Whether there is code: a folder of type stubs alone has no origin."""
    spec = find_spec(engine.module)
    return spec is not None and spec.origin is not None


def open_runtime(name: str, path: Path, threads: int | None = None) -> FileRuntime:
    """Load the file at `path` into the engine `name`, on `threads` threads of the CPU (None: the engine's choice).

    It is an ONNX file; TensorRT also takes an engine that was built from one.

    Raises:
        InputError: unknown or missing engine, or a file that it can't load; PyTorch runs modules, not files.
    """
    require(name)
    match name:
        case "onnxruntime":
            from repquant.runtimes.onnxruntime import OnnxRuntime

            return OnnxRuntime(path, threads)
        case "openvino":
            from repquant.runtimes.openvino import OpenVinoRuntime

            return OpenVinoRuntime(path, threads)
        case "tensorrt":
            from repquant.runtimes.tensorrt import TensorRtRuntime

            return TensorRtRuntime(path)
        case _:
            files = ", ".join(other for other in ENGINES if other != name)
            raise InputError(f"runtime {name} can't run the file {path}; choose from {files}")


def open_classifier(name: str, path: Path, threads: int | None = None) -> Classifier:
    """Load a file as `open_runtime` does, if it has one input (images) and one output (logits).

    Raises:
        InputError: as `open_runtime`, or a file with more of them.
    """
    return Classifier(open_runtime(name, path, threads), path)
