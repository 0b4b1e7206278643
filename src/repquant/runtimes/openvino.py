"""OpenVINO on the CPU."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from repquant.runtimes.integer_relu import load_equal_graph, unsigned_after_relu
from repquant.runtimes.model_file import (
    cannot_load,
    cannot_run,
    check_images,
    check_interface,
    check_logits,
    check_type,
    require_file,
)


class OpenVinoRuntime:
    """An ONNX file in OpenVINO's CPU plugin, with its default graph optimizations.

    Symmetric int8 behind a ReLU gets the equal form of `integer_relu.unsigned_after_relu`.

    Args:
        path: the .onnx file.
        threads: threads of an inference; None leaves the choice (all cores) to OpenVINO.

    Raises:
        InputError: no such file, not a model that OpenVINO can load, or, when called, images of a shape
            that the model does not take.
    """

    name = "openvino"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import openvino

        self.version: str = openvino.__version__.split("-")[0]  # without the build number
        self._path = require_file(path)
        config: dict[str, str | int] = {
            # What is not int8 must be float32. On CPUs with AVX-512 bf16 or AMX the plugin otherwise runs it in
            # bfloat16: on a small Q/DQ network that moved the logits by up to one int8 step (2.4e-2 of 2.6, and
            # 1.5e-6 with this hint); a float model loses its last 16 bits throughout.
            "INFERENCE_PRECISION_HINT": "f32",
            # Calls are synchronous: one stream gets all the threads.
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        try:
            core = openvino.Core()
            model = core.compile_model(core.read_model(load_equal_graph(path, unsigned_after_relu)), "CPU", config)
        except Exception as error:  # of the ONNX parser, too
            raise cannot_load(path, "OpenVINO", error) from error
        check_interface(path, len(model.inputs), len(model.outputs))
        check_type(path, model.input(0).get_element_type().get_type_name(), "f32")
        self._request = model.create_infer_request()
        self._shape = [size.get_length() if size.is_static else None for size in model.input(0).get_partial_shape()]

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalized images (N, 3, H, W) to logits (N, K)."""
        check_images(self._path, self._shape, images.shape)
        # Shared input: the array outlives this synchronous call. The output is copied out of the request, whose
        # buffer the next call overwrites.
        try:
            logits = self._request.infer([images], share_inputs=True, share_outputs=False)[0]
        except Exception as error:
            raise cannot_run(self._path, "OpenVINO", error) from error
        return check_logits(self._path, np.asarray(logits), len(images))
