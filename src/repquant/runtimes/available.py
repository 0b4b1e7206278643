"""Which engines can run here, and what to install for the others. Nothing heavy is imported to find out."""

from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from repquant.errors import InputError
from repquant.runtimes.interface import FileRuntime
from repquant.runtimes.model_file import require_classifier


@dataclass(frozen=True)
class Engine:
    """An engine by the module to import and the extra of this package that installs it (None: always there)."""

    module: str
    extra: str | None


ENGINES = {
    "pytorch": Engine(module="torch", extra=None),
    "onnxruntime": Engine(module="onnxruntime", extra="onnxruntime"),
    "openvino": Engine(module="openvino", extra="openvino"),
}


def installed() -> tuple[str, ...]:
    """Return the names of the engines that can run here."""
    return tuple(name for name, engine in ENGINES.items() if find_spec(engine.module) is not None)


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
    if find_spec(engine.module) is None:
        package = f"repquant[{engine.extra}]" if engine.extra else "repquant"
        raise InputError(
            f"runtime {name} is not installed; run pip install '{package}', or choose from {', '.join(installed())}"
        )


def open_runtime(name: str, path: Path, threads: int | None = None) -> FileRuntime:
    """Load the ONNX file at `path` into the engine `name`, on `threads` threads (None: the engine's choice).

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
        case _:
            files = ", ".join(other for other in ENGINES if other != name)
            raise InputError(f"runtime {name} can't run the file {path}; choose from {files}")


def open_classifier(name: str, path: Path, threads: int | None = None) -> FileRuntime:
    """Load a file as `open_runtime` does, if it has one input (images) and one output (logits).

    Raises:
        InputError: as `open_runtime`, or a file with more of them.
    """
    runtime = open_runtime(name, path, threads)
    require_classifier(path, len(runtime.input_names), len(runtime.output_names))
    return runtime
