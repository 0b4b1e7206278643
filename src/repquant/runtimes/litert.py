"""LiteRT (TensorFlow Lite) on the CPU, with XNNPACK."""

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repquant.errors import InputError
from repquant.runtimes.executed import Executed
from repquant.runtimes.model_file import cannot_run
from repquant.runtimes.named_values import NamedValues
from repquant.targets.litert import open_interpreter
from repquant.targets.litert_file import read_litert

_INTEGERS = ("int8", "uint8")


class LitertRuntime(NamedValues):
    """A .tflite file in LiteRT's interpreter, which leaves to XNNPACK what that knows.

    Images are given as (N, C, H, W), also to a file of ours that holds them channels last; files from elsewhere are
    given what they say. An integer input may be given as floats, which are rounded to the grid of the file; integers
    are handed on as they are.

    Args:
        path: the .tflite file.
        threads: of the CPU; None for all cores.

    Attributes:
        inputs: name -> shape, None for any size.
        outputs: names.

    Raises:
        InputError: no such file, not a model that LiteRT can load, or, when called, inputs of a shape that the model
            does not take.
    """

    name = "litert"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.version: str = version("ai-edge-litert")
        self._path = path
        self._graph = read_litert(path)
        try:
            self._interpreter = open_interpreter(path, threads or os.cpu_count() or 1)
        except (ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise InputError(f"LiteRT can't load {path}: {reason}; is it a complete .tflite file?") from error
        self._inputs = self._interpreter.get_input_details()
        self._outputs = self._interpreter.get_output_details()
        self._shapes = [tuple(detail["shape"].tolist()) for detail in self._inputs]
        names, self.outputs = self._graph.names
        self.inputs = {
            name: _network_shape(detail["shape_signature"], order)
            for name, detail, order in zip(names, self._inputs, self._graph.orders[0], strict=True)
        }

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            given = [
                _as_stored(inputs[name].transpose(order), detail)
                for name, order, detail in zip(self.inputs, self._graph.orders[0], self._inputs, strict=True)
            ]
            self._resize(given)
            for array, detail in zip(given, self._inputs, strict=True):
                self._interpreter.set_tensor(detail["index"], array)
            self._interpreter.invoke()
        except (ValueError, RuntimeError, MemoryError) as error:
            raise cannot_run(self._path, "LiteRT", error) from error
        return {
            name: np.ascontiguousarray(self._interpreter.get_tensor(detail["index"]).transpose(np.argsort(order)))
            for name, order, detail in zip(self.outputs, self._graph.orders[1], self._outputs, strict=True)
        }

    def executed(self) -> tuple[Executed, ...]:
        """Return the operators that the engine runs for this file, in their order."""
        return tuple(
            Executed(
                kind=operator.kind,
                name=self._graph.writes(operator)[0].name,
                is_integer=self._graph.reads(operator)[0].dtype in _INTEGERS,
            )
            for operator in self._graph.operators
            if operator.kind not in ("QUANTIZE", "DEQUANTIZE")
        )

    def _resize(self, arrays: list[NDArray[Any]]) -> None:
        shapes = [array.shape for array in arrays]
        if shapes == self._shapes:
            return
        self._shapes = []  # unknown, should what follows fail
        for array, detail in zip(arrays, self._inputs, strict=True):
            self._interpreter.resize_tensor_input(detail["index"], array.shape)
        self._interpreter.allocate_tensors()
        self._shapes = shapes


def _as_stored(array: NDArray[Any], detail: Mapping[str, Any]) -> NDArray[Any]:
    """Return an array as an input holds it, one after the other: floats rounded to the grid of an integer input."""
    dtype = np.dtype(detail["dtype"])
    if dtype.name in _INTEGERS and array.dtype.kind == "f":
        scale, zero_point = detail["quantization"]
        limits = np.iinfo(dtype)
        array = np.clip(np.rint(array * np.float32(1 / scale)) + zero_point, limits.min, limits.max).astype(dtype)
    return np.ascontiguousarray(array)


def _network_shape(shape: NDArray[Any], order: tuple[int, ...]) -> tuple[int | None, ...]:
    """Return the sizes of a tensor's axes in the network's order; None for any size."""
    sizes = (int(shape[order.index(axis)]) for axis in range(len(order)))
    return tuple(None if size < 0 else size for size in sizes)
