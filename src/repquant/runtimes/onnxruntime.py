"""ONNX Runtime on the CPU."""

import json
import platform
import tempfile
from collections.abc import Iterable, Mapping
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
from repquant.runtimes.layer_time import INT8, OTHER, REFORMAT, LayerTime, median_times
from repquant.runtimes.model_file import (
    cannot_load,
    cannot_run,
    check_type,
    require_file,
)
from repquant.runtimes.named_values import NamedValues
from repquant.runtimes.precise_products import PRECISE, own_constants
from repquant.runtimes.unsigned_activations import unsigned_activations
from repquant.targets.cpu_rules import may_saturate
from repquant.targets.onnxruntime import MOVING

_ERRORS_ONLY = 3
_TIMED = "_kernel_time"
_PRECISIONS = {"int8": INT8, "uint8": INT8, "float": "FP32", "float16": "FP16", "bfloat16": "BF16"}


class OnnxRuntime(NamedValues):
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
        self.outputs = tuple(value.name for value in self._session.get_outputs())

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
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

    def profile(self, *inputs: Array, runs: int = 10) -> tuple[LayerTime, ...]:
        """Return how long each operator takes, in their order, in a session of its own."""
        with tempfile.TemporaryDirectory() as folder:
            session = self._open(profile=Path(folder) / "profile")
            given = dict(zip(self.inputs, inputs, strict=True))
            for _ in range(1 + runs):
                session.run(None, given)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return layer_times(events)

    def _open(self, optimized: Path | None = None, profile: Path | None = None) -> Any:
        """Return a session for the file.

        Args:
            optimized: where it writes the graph that it runs.
            profile: where it writes how long that took; the name gets an ending.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        options.log_severity_level = _ERRORS_ONLY
        # Idle workers spin by default, and then slow down every other engine in this process.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
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


def layer_times(events: Iterable[Mapping[str, Any]]) -> tuple[LayerTime, ...]:
    """Return the operators in the events of a profile, without the first run, which finds its memory."""
    nodes: dict[tuple[str, str], list[LayerTime]] = {}  # each by its number and name: one entry a run
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_TIMED):
            nodes.setdefault((event["args"].get("node_index", ""), event["name"]), []).append(_layer_time(event))
    return median_times(list(zip(*nodes.values(), strict=True))[1:])


def _layer_time(event: Mapping[str, Any]) -> LayerTime:
    kind = event["args"]["op_name"]
    types = [name for shape in event["args"].get("input_type_shape", ()) for name in shape]
    return LayerTime(
        name=event["name"].removesuffix(_TIMED),
        kind=kind,
        precision=REFORMAT if kind in MOVING else _precision(types),
        milliseconds=event["dur"] / 1000,
    )


def _precision(types: Iterable[str]) -> str:
    """Return what an operator computes in by the types of its inputs: in integers if one of them has 8 bits."""
    known = [_PRECISIONS[name] for name in types if name in _PRECISIONS]
    return INT8 if INT8 in known else next(iter(known), OTHER)
