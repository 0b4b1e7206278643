"""ONNX Runtime on the CPU."""

import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from repquant.runtimes.cpu import int8_support, is_x86
from repquant.runtimes.executed import Executed, executed_nodes
from repquant.runtimes.half_scales import widen_half
from repquant.runtimes.integer_relu import quantize_before_relu
from repquant.runtimes.interface import Array
from repquant.runtimes.model_file import (
    as_outputs,
    cannot_load,
    cannot_run,
    check_inputs,
    check_names,
    check_type,
    require_file,
)
from repquant.runtimes.precise_products import PRECISE, own_constants
from repquant.runtimes.unsigned_activations import unsigned_activations
from repquant.targets.cpu_rules import may_saturate

_ERRORS_ONLY = 3


class OnnxRuntime:
    """An ONNX file in ONNX Runtime's CPU provider, with its default graph optimizations.

    Symmetric int8 convolutions before a ReLU get the equal form of `integer_relu.quantize_before_relu`, to run
    in integers too, other signed activations on x86 that of `unsigned_activations`, and FP16 scales that of
    `half_scales.widen_half`. Where this CPU would saturate with the weights of the file, `precise_products` keeps it
    from that.

    Args:
        path: the .onnx file.
        threads: threads inside an operator; None leaves the choice (all cores) to ONNX Runtime.

    Attributes:
        inputs: name -> shape, as the file has them; None stands for any size.
        outputs: names.

    Raises:
        InputError: no such file, not a model that ONNX Runtime can load, or, when called, images of a
            shape that the model does not take.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime

        self.version: str = onnxruntime.__version__
        self._path = require_file(path)
        self._threads = threads
        self._session = self._open()
        for value in self._session.get_inputs():
            check_type(path, value.type, "tensor(float)")
        self.inputs = {
            value.name: tuple(size if isinstance(size, int) else None for size in value.shape)
            for value in self._session.get_inputs()
        }
        self.outputs: tuple[str, ...] = tuple(value.name for value in self._session.get_outputs())

    def __call__(self, *inputs: Array) -> Array | tuple[Array, ...]:
        """Return the output for the inputs, or a tuple where there are several.

        Raises:
            InputError: inputs of a number or a shape that the model does not take.
        """
        check_inputs(self._path, [*self.inputs.values()], [x.shape for x in inputs])
        results = self.run(dict(zip(self.inputs, inputs, strict=True)))
        return as_outputs([results[name] for name in self.outputs])

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name for the inputs by name.

        Raises:
            InputError: an input is missing, or there is none of that name.
        """
        check_names(self._path, tuple(self.inputs), inputs)
        try:
            outputs = self._session.run(list(self.outputs), dict(inputs))
        except Exception as error:
            raise cannot_run(self._path, "ONNX Runtime", error) from error
        return {name: np.asarray(value) for name, value in zip(self.outputs, outputs, strict=True)}

    def executed(self) -> tuple[Executed, ...]:
        """Return the operators that the engine runs for this file, in their order."""
        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder) / "optimized.onnx"
            self._open(optimized)
            return tuple(executed_nodes(onnx.load(optimized)))

    def _open(self, optimized: Path | None = None) -> Any:
        """Return a session for the file; where `optimized` is given, it writes the graph there that it runs."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        options.log_severity_level = _ERRORS_ONLY
        # Idle workers spin by default, and then slow down every other engine in this process.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        try:
            model = quantize_before_relu(widen_half(onnx.load(self._path)))
            if is_x86(platform.machine()):
                model = unsigned_activations(model)
            if not int8_support().safe and may_saturate(model):
                options.add_session_config_entry(*PRECISE)
                model = own_constants(model)
            return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class of their own
            raise cannot_load(self._path, "ONNX Runtime", error) from error
