"""OpenVINO on the CPU."""

from pathlib import Path

import onnx

from repquant.runtimes.half_scales import widen_half
from repquant.runtimes.integer_relu import unsigned_after_relu
from repquant.runtimes.interface import Array
from repquant.runtimes.model_file import as_outputs, cannot_load, check_inputs, require_file


class OpenVinoRuntime:
    """An ONNX file in OpenVINO's CPU plugin, with its default graph optimizations.

    Symmetric int8 behind a ReLU gets the equal form of `integer_relu.unsigned_after_relu`, FP16 scales that of
    `half_scales.widen_half`.

    Args:
        path: the .onnx file.
        threads: threads of an inference; None leaves the choice (all cores) to OpenVINO.

    Attributes:
        input_names, output_names: as the file has them.

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
            content: bytes = unsigned_after_relu(widen_half(onnx.load(path))).SerializeToString()
            core = openvino.Core()
            model = core.compile_model(core.read_model(content), "CPU", config)
        except Exception as error:  # of the ONNX parser, too
            raise cannot_load(path, "OpenVINO", error) from error
        self.input_names = tuple(port.any_name for port in model.inputs)
        self.output_names = tuple(port.any_name for port in model.outputs)
        self._request = model.create_infer_request()
        self._shapes = [
            [size.get_length() if size.is_static else None for size in port.get_partial_shape()]
            for port in model.inputs
        ]

    def __call__(self, *inputs: Array) -> Array | tuple[Array, ...]:
        """Return the output for the inputs, or a tuple where there are several."""
        check_inputs(self._path, self._shapes, [x.shape for x in inputs])
        # Shared inputs: the arrays outlive this synchronous call. The outputs are copied out of the request, whose
        # buffers the next call overwrites.
        results = self._request.infer(list(inputs), share_inputs=True, share_outputs=False)
        return as_outputs([results[position] for position in range(len(self.output_names))])
