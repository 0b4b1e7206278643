"""ONNX Runtime on the CPU."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from repquant.runtimes.integer_relu import load_equal_graph, quantize_before_relu
from repquant.runtimes.model_file import (
    cannot_load,
    cannot_run,
    check_images,
    check_interface,
    check_logits,
    check_type,
    require_file,
)

_ERRORS_ONLY = 3


class OnnxRuntime:
    """An ONNX file in ONNX Runtime's CPU provider, with its default graph optimizations.

    Symmetric int8 convolutions before a ReLU get the equal form of
    `integer_relu.quantize_before_relu`, so that they run in integers too.

    Args:
        path: the .onnx file.
        threads: threads inside an operator; None leaves the choice (all cores) to ONNX Runtime.

    Raises:
        InputError: no such file, not a model that ONNX Runtime can load, or, when called, images of a
            shape that the model does not take.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime

        self.version: str = onnxruntime.__version__
        self._path = require_file(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = _ERRORS_ONLY
        # Idle workers spin by default, and then slow down every other engine in this process.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                load_equal_graph(path, quantize_before_relu), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base class of their own
            raise cannot_load(path, "ONNX Runtime", error) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        check_interface(path, len(inputs), len(outputs))
        check_type(path, inputs[0].type, "tensor(float)")
        self._input = inputs[0].name
        # A size that is not fixed has a string for a name, or None.
        self._shape = [size if isinstance(size, int) else None for size in inputs[0].shape]

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalized images (N, 3, H, W) to logits (N, K)."""
        check_images(self._path, self._shape, images.shape)
        try:
            (logits,) = self._session.run(None, {self._input: images})
        except Exception as error:
            raise cannot_run(self._path, "ONNX Runtime", error) from error
        return check_logits(self._path, np.asarray(logits), len(images))
