"""TensorRT on an NVIDIA GPU.

Typed against the stubs of TensorRT 10.13 and tested against a stand-in that is made from them. Nothing here has been
executed with TensorRT itself (docs/how-to/tensorrt.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from repquant.errors import InputError
from repquant.runtimes.device_memory import DeviceMemory, open_memory
from repquant.runtimes.interface import Array
from repquant.runtimes.layer_time import OTHER, LayerTime, median_times
from repquant.runtimes.model_file import as_outputs, check_inputs, require_file
from repquant.runtimes.tensorrt_build import BuildOptions, build_engine, inspect
from repquant.runtimes.tensorrt_layers import read_layers
from repquant.runtimes.tensorrt_log import Messages, require_tensorrt
from repquant.runtimes.tensorrt_profiler import layer_profiler

if TYPE_CHECKING:
    import tensorrt as trt

ENGINE_SUFFIXES = (".engine", ".plan")


class TensorRtRuntime:
    """An engine, from its file or built from an ONNX file when it is opened.

    Batches that are larger than the engine's largest are run in parts.

    Args:
        path: .engine or .plan, or an .onnx file, float or INT8.
        memory: of the GPU; None opens it.

    Raises:
        InputError: no such file, no TensorRT or one that is too old, no GPU, an engine of another release or GPU, or a
            file that it can't build; when called, images of a shape that the engine does not take.
    """

    name = "tensorrt"

    def __init__(self, path: Path, memory: DeviceMemory | None = None) -> None:
        self._path = require_file(path)
        self.version = require_tensorrt()
        self._memory = memory or open_memory()
        if path.suffix in ENGINE_SUFFIXES:
            plan = path.read_bytes()
        else:
            plan = build_engine(path, BuildOptions(allow_float=True)).plan
        self._messages = Messages()
        self._engine = self._deserialized(plan)
        self._context = self._new_context()
        names, self.outputs = self._tensors()
        sizes = [_sizes(self._engine.get_tensor_shape(name)) for name in names]
        self.inputs = {name: (None, *rest) for name, (_, *rest) in zip(names, sizes, strict=True)}
        self._smallest = self._largest = sizes[0][0]
        if self._largest < 0:  # it varies, within what the engine was built for
            smallest, _, largest = self._engine.get_tensor_profile_shape(names[0], 0)
            self._smallest, self._largest = smallest[0], largest[0]

    def __call__(self, *inputs: Array) -> Array | tuple[Array, ...]:
        """Return the output for the inputs, or a tuple where there are several."""
        check_inputs(self._path, [*self.inputs.values()], [x.shape for x in inputs])
        starts = range(0, len(inputs[0]), self._largest)
        parts = [self._run([x[start : start + self._largest] for x in inputs], self._context) for start in starts]
        return as_outputs([np.concatenate(pieces) for pieces in zip(*parts, strict=True)])

    def profile(self, *inputs: Array, runs: int = 10) -> tuple[LayerTime, ...]:
        """Return how long each layer takes, in a context of its own; precisions are those of the inspector."""
        context = self._new_context()
        times = layer_profiler()
        context.profiler = times
        measured = []
        for _ in range(1 + runs):
            times.layers.clear()
            self._run([x[: self._largest] for x in inputs], context)
            measured.append(tuple(times.layers))
        kinds = {layer.name: layer.kind for layer in read_layers(inspect(self._engine))}
        layers = [
            [LayerTime(name=name, kind="", precision=kinds.get(name, OTHER), milliseconds=ms) for name, ms in run]
            for run in measured[1:]  # the first finds its memory
        ]
        return median_times(layers)

    def _new_context(self) -> trt.IExecutionContext:
        context = self._engine.create_execution_context()
        if context is None:
            raise InputError(f"TensorRT can't run {self._path}: {self._messages.reason()}; free memory of the GPU")
        return context

    def _deserialized(self, plan: bytes) -> trt.ICudaEngine:
        import tensorrt as trt

        self._runtime = trt.Runtime(self._messages.logger)  # it has to live as long as its engines
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise InputError(
                f"TensorRT {self.version} does not load {self._path}: {self._messages.reason()}; engines run on the "
                "release and the kind of GPU that they were built on: build it again here with `repquant engine`"
            )
        return engine

    def _tensors(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of the inputs and of the outputs."""
        import tensorrt as trt

        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        inputs = tuple(name for name in names if modes[name] == trt.TensorIOMode.INPUT)
        outputs = tuple(name for name in names if modes[name] == trt.TensorIOMode.OUTPUT)
        for name in names:
            if self._engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
                raise InputError(f"engine {self._path} has {name} in another type than float32; build it again")
        return inputs, outputs

    def _run(self, inputs: list[Array], context: trt.IExecutionContext) -> list[Array]:
        count = len(inputs[0])
        if count < self._smallest:  # a batch that is fixed, or a profile that begins above it
            inputs = [np.concatenate([x, np.zeros((self._smallest - count, *x.shape[1:]), x.dtype)]) for x in inputs]
        memory = self._memory
        given = [memory.upload(x) for x in inputs]
        shapes = zip(self.inputs, inputs, strict=True)
        is_set = all(context.set_input_shape(name, tuple(x.shape)) for name, x in shapes)
        results = [memory.allocate(_sizes(context.get_tensor_shape(name))) for name in self.outputs]
        tensors = zip((*self.inputs, *self.outputs), (*given, *results), strict=True)
        is_set = is_set and all(context.set_tensor_address(name, memory.address(x)) for name, x in tensors)
        if not (is_set and context.execute_async_v3(memory.stream)):
            raise InputError(f"TensorRT can't run {self._path}: {self._messages.reason()}")
        return [memory.download(result)[:count] for result in results]


def _sizes(dims: trt.Dims) -> tuple[int, ...]:
    return tuple(dims[axis] for axis in range(len(dims)))
