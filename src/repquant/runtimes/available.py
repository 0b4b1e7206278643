"""Which engines can run here, which files they take, and what to install. Nothing heavy is imported to find out."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from repquant.errors import InputError
from repquant.runtimes.classifier import Classifier
from repquant.runtimes.interface import FileRuntime


@dataclass(frozen=True)
class Engine:
    """An engine.

    Attributes:
        module: to import.
        package: that pip installs it with.
        suffix: of the files that are written for it.
        targets: whose integers it executes; none for all of them.
    """

    module: str
    package: str
    suffix: str = ".onnx"
    targets: tuple[str, ...] = ()


_ROUNDS_ALL_SUMMANDS = ("litert", "executorch", "onnxruntime")

ENGINES: dict[str, Engine] = {
    "pytorch": Engine(module="torch", package="repquant"),
    "onnxruntime": Engine(module="onnxruntime", package="repquant[onnxruntime]"),
    "openvino": Engine(module="openvino", package="repquant[openvino]"),
    "tensorrt": Engine(module="tensorrt", package="tensorrt"),  # needs an NVIDIA GPU, so no extra of this package
    "litert": Engine(
        module="ai_edge_litert",
        package="repquant[litert]",
        suffix=".tflite",
        targets=_ROUNDS_ALL_SUMMANDS,
    ),
    "executorch": Engine(
        module="executorch.runtime",
        package="repquant[executorch]",
        suffix=".pte",
        targets=_ROUNDS_ALL_SUMMANDS,
    ),
    "ncnn": Engine(module="ncnn", package="repquant[ncnn]", suffix=".param", targets=("ncnn",)),
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


def default_runtimes(target: str) -> tuple[str, ...]:
    """Return the engines that prove what is made for a target, where nobody says which."""
    return (target,) if target in ("litert", "executorch", "ncnn") else ("onnxruntime", "openvino")


def fits(name: str, target: str) -> bool:
    """Whether an engine executes the integers of a target."""
    if target == "ncnn":  # whose grids leave out the most negative integer
        return name in ("ncnn", "pytorch")
    allowed = ENGINES[name].targets
    asks_for_zero = name == "tensorrt" and target in ("litert", "executorch")  # symmetric activations alone
    return not asks_for_zero and (not allowed or target in allowed)


def require_fit(names: Sequence[str], target: str) -> None:
    """Accept engines that execute the integers of a target.

    Raises:
        InputError: one that does not; says why.
    """
    for name in names:
        if fits(name, target):
            continue
        reasons = {
            "litert": f"target {target} keeps sums in 32 bits, and LiteRT rounds every summand",
            "executorch": f"target {target} keeps sums in 32 bits, and ExecuTorch rounds every summand",
            "tensorrt": f"activations of target {target} have zero points, and TensorRT has none",
            "ncnn": "ncnn has symmetric activations from -127 to 127 alone",
        }
        others = ", ".join(other for other in ENGINES if fits(other, target))
        reason = reasons["ncnn" if target == "ncnn" else name]
        raise InputError(f"runtime {name} can't run what is made for target {target}: {reason}; choose {others}")


def require_kind(name: str, path: Path) -> None:
    """Accept a file of the kind that an engine reads.

    Raises:
        InputError: a .tflite, .pte or .param file for an engine that reads ONNX files, and so on.
    """
    files = {other: engine.suffix for other, engine in ENGINES.items() if other != "pytorch"}
    if name in files and path.suffix != files[name] and path.suffix in files.values():
        readers = ", ".join(other for other, suffix in files.items() if suffix == path.suffix)
        raise InputError(f"{name} reads {files[name]} files, and {path} was given; choose from {readers}")


def _is_installed(engine: Engine) -> bool:
    """Whether there is code: a folder of type stubs alone has no origin."""
    try:
        spec = find_spec(engine.module)
    except ModuleNotFoundError:  # of the package around it
        return False
    return spec is not None and spec.origin is not None


def open_runtime(name: str, path: Path, threads: int | None = None) -> FileRuntime:
    """Load the file at `path` into the engine `name`, on `threads` threads of the CPU (None: the engine's choice).

    It is an ONNX file, a .tflite file for LiteRT, a .pte file for ExecuTorch and for ncnn a .param file with its .bin
    file beside it; TensorRT also takes an engine that was built from its file.

    Raises:
        InputError: unknown or missing engine, or a file that it can't load; PyTorch runs modules, not files.
    """
    require(name)
    require_kind(name, path)
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
        case "litert":
            from repquant.runtimes.litert import LitertRuntime

            return LitertRuntime(path, threads)
        case "executorch":
            from repquant.runtimes.executorch import ExecutorchRuntime

            return ExecutorchRuntime(path, threads)
        case "ncnn":
            from repquant.runtimes.ncnn import NcnnRuntime

            return NcnnRuntime(path, threads)
        case _:
            files = ", ".join(other for other in ENGINES if other != name)
            raise InputError(f"runtime {name} can't run the file {path}; choose from {files}")


def open_classifier(name: str, path: Path, threads: int | None = None) -> Classifier:
    """Load a file as `open_runtime` does, if it has one input (images) and one output (logits).

    Raises:
        InputError: as `open_runtime`, or a file with more of them.
    """
    return Classifier(open_runtime(name, path, threads), path)
