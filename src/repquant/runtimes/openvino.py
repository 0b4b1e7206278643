"""OpenVINO on the CPU."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from repquant.export.pooling import pad_before_average
from repquant.runtimes.executed import Executed, kernels_of_products
from repquant.runtimes.half_scales import widen_half
from repquant.runtimes.integer_relu import unsigned_after_relu
from repquant.runtimes.interface import Array
from repquant.runtimes.layer_time import INT8, OTHER, REFORMAT, LayerTime, median_times
from repquant.runtimes.model_file import (
    cannot_load,
    cannot_run,
    check_type,
    require_file,
)
from repquant.runtimes.named_values import NamedValues
from repquant.runtimes.unsigned_activations import unsigned_activations
from repquant.targets.openvino import MOVING, compile_for_cpu

_PRECISIONS = {"i8": INT8, "u8": INT8, "f32": "FP32", "fp32": "FP32", "f16": "FP16", "fp16": "FP16", "bf16": "BF16"}


class OpenVinoRuntime(NamedValues):
    """An ONNX file in OpenVINO's CPU plugin, with its default graph optimizations.

    Symmetric int8 behind a ReLU gets the equal form of `integer_relu.unsigned_after_relu`, elsewhere that of
    `unsigned_activations`, and FP16 scales that of `half_scales.widen_half`.

    Args:
        path: the .onnx file.
        threads: threads of an inference; None leaves the choice (all cores) to OpenVINO.

    Attributes:
        inputs: name -> shape, as the file has them; None stands for any size.
        outputs: names.

    Raises:
        InputError: no such file, not a model that OpenVINO can load, or, when called, images of a shape
            that the model does not take.
    """

    name = "openvino"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import openvino

        self.version: str = openvino.__version__.split("-")[0]  # without the build number
        self._path = require_file(path)
        self._config: dict[str, Any] = {
            # What is not int8 must be float32. On CPUs with AVX-512 bf16 or AMX the plugin otherwise runs it in
            # bfloat16: on a small Q/DQ network that moved the logits by up to one int8 step (2.4e-2 of 2.6, and
            # 1.5e-6 with this hint); a float model loses its last 16 bits throughout.
            "INFERENCE_PRECISION_HINT": "f32",
            # Calls are synchronous: one stream gets all the threads.
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            self._config["INFERENCE_NUM_THREADS"] = threads
        self._model = model = self._compile()
        for port in model.inputs:
            check_type(path, port.get_element_type().get_type_name(), "f32")
        self._request = model.create_infer_request()
        self.inputs = {
            port.any_name: tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())
            for port in model.inputs
        }
        self.outputs = tuple(port.any_name for port in model.outputs)

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        # Shared input: the arrays outlive this synchronous call. The outputs are copied out of the request, whose
        # buffers the next call overwrites.
        given = [inputs[name] for name in self.inputs]
        try:
            results = self._request.infer(given, share_inputs=True, share_outputs=False)
        except Exception as error:
            raise cannot_run(self._path, "OpenVINO", error) from error
        return {name: np.asarray(results[index]) for index, name in enumerate(self.outputs)}

    def profile(self, *inputs: Array, runs: int = 10) -> tuple[LayerTime, ...]:
        """Return how long each operator takes, in their order, in a model of its own."""
        request = self._compile(PERF_COUNT=True).create_infer_request()
        measured = []
        for _ in range(1 + runs):
            request.infer(list(inputs), share_inputs=True)
            measured.append(layer_times(request.get_profiling_info()))
        timed = median_times(measured[1:])  # the first run finds its memory
        return tuple(layer for layer in timed if layer.milliseconds)  # others are fused into these, or constant

    def _compile(self, **more: Any) -> Any:
        """Return the model for the file; `more` is added to its configuration."""
        try:
            equal = unsigned_activations(unsigned_after_relu(widen_half(onnx.load(self._path))))
            return compile_for_cpu(pad_before_average(equal), self._config | more)
        except Exception as error:  # of the ONNX parser, too
            raise cannot_load(self._path, "OpenVINO", error) from error

    def executed(self) -> tuple[Executed, ...]:
        """Return the operators that the engine runs for this file, in their order."""
        return tuple(_executed(node) for node in self._model.get_runtime_model().get_ops())

    def integer_kernels(self) -> list[str]:
        """Return the kernels that products of integers run in, such as `brgconv_avx512_amx_I8`, each once."""
        return kernels_of_products(self.executed())


def _executed(node: Any) -> Executed:
    facts = node.get_rt_info()
    return Executed(
        kind=facts["layerType"].astype(str),
        name=node.get_friendly_name(),
        is_integer=facts["runtimePrecision"].astype(str) in ("i8", "u8"),
        kernel=facts["primitiveType"].astype(str),
    )


def layer_times(infos: Iterable[Any]) -> list[LayerTime]:
    """Return the operators that a request's profiler tells of; those that take no time of their own have none."""
    return [
        LayerTime(
            name=info.node_name,
            kind=f"{info.node_type} {info.exec_type}",
            precision=REFORMAT if info.node_type in MOVING else _precision(info.exec_type),
            milliseconds=info.real_time.total_seconds() * 1000,
        )
        for info in infos
    ]


def _precision(kernel: str) -> str:
    """Return what a kernel computes in, which its name ends with."""
    return _PRECISIONS.get(kernel.rpartition("_")[2].lower(), OTHER)
