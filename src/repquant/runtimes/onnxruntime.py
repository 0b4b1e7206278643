"""ONNX Runtime on the CPU."""

from pathlib import Path

import onnx

from repquant.runtimes.cpu import int8_support
from repquant.runtimes.half_scales import widen_half
from repquant.runtimes.integer_relu import quantize_before_relu
from repquant.runtimes.interface import Array
from repquant.runtimes.model_file import as_outputs, cannot_load, check_inputs, require_file
from repquant.runtimes.precise_products import PRECISE, own_constants
from repquant.targets.cpu_rules import may_saturate

_ERRORS_ONLY = 3


class OnnxRuntime:
    """An ONNX file in ONNX Runtime's CPU provider, with its default graph optimizations.

    Symmetric int8 convolutions before a ReLU get the equal form of
    `integer_relu.quantize_before_relu`, so that they run in integers too, FP16 scales that of `half_scales.widen_half`.
    Where this CPU would saturate with the weights of the file, `precise_products` keeps it from that.

    Args:
        path: the .onnx file.
        threads: threads inside an operator; None leaves the choice (all cores) to ONNX Runtime.

    Attributes:
        input_names, output_names: as the file has them.

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
            model = quantize_before_relu(widen_half(onnx.load(path)))
            if not int8_support().safe and may_saturate(model):
                options.add_session_config_entry(*PRECISE)
                model = own_constants(model)
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base class of their own
            raise cannot_load(path, "ONNX Runtime", error) from error
        self.input_names = tuple(node.name for node in self._session.get_inputs())
        self.output_names = tuple(node.name for node in self._session.get_outputs())
        # A size that is not fixed has a string for a name, or None.
        self._shapes = [
            [size if isinstance(size, int) else None for size in node.shape] for node in self._session.get_inputs()
        ]

    def __call__(self, *inputs: Array) -> Array | tuple[Array, ...]:
        """Return the output for the inputs, or a tuple where there are several."""
        check_inputs(self._path, self._shapes, [x.shape for x in inputs])
        return as_outputs(self._session.run(None, dict(zip(self.input_names, inputs, strict=True))))
