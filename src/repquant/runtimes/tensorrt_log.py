"""Whether TensorRT is there, and what it has to say when something fails."""

from __future__ import annotations

import threading
from importlib.util import find_spec
from typing import TYPE_CHECKING

from repquant.errors import InputError

if TYPE_CHECKING:
    import tensorrt as trt

OLDEST = (10, 0)


def require_tensorrt() -> str:
    """Accept TensorRT 10.0 or newer, and return its version.

    Raises:
        InputError: it is not installed, or too old; says what to install.
    """
    spec = find_spec("tensorrt")
    if spec is None or spec.origin is None:  # its stubs alone are a folder without code
        raise InputError("TensorRT is not installed; run pip install tensorrt on a machine with an NVIDIA GPU")
    import tensorrt as trt

    version: str = trt.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise InputError(
            f"TensorRT {version} is installed, and 10.0 or newer is needed; for 8.6 write the file with "
            "`stored_weights='float'` and build it with trtexec --int8 (docs/how-to/tensorrt.md)"
        )
    return version


class Messages:
    """The errors that TensorRT logs, for the exception that is raised when a call fails."""

    def __init__(self) -> None:
        import tensorrt as trt

        messages: list[str] = []
        lock = threading.Lock()  # the builder logs from threads of its own
        severities = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
                if severity in severities:
                    with lock:
                        messages.append(msg)

        self.logger: trt.ILogger = Logger()
        self._messages = messages

    def reason(self) -> str:
        """Return what was logged, on one line."""
        return "; ".join(dict.fromkeys(self._messages)) or "it gives no reason"
