"""A .tflite file as the rules and the runtime read it: its one graph, constants, and what we note beside them."""

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repquant.errors import InputError

METADATA = "repquant"
"""Name of the metadata that files of ours have: the order of the axes of inputs and outputs, in JSON."""

_IDENTIFIER = b"TFL3"
_IDENTIFIER_PLACE = slice(4, 8)
_DTYPES = {"FLOAT32": "float32", "INT8": "int8", "UINT8": "uint8", "INT32": "int32", "INT64": "int64", "INT4": "int4"}


def load_schema() -> Any:
    """Return the module that the compiler of the schema made.

    Raises:
        InputError: the package that has it is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise InputError(
            "files for litert are read and written with the schema of the package ai-edge-litert, which is not "
            "installed; run pip install 'repquant[litert]'"
        ) from error
    return schema_py_generated


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of the graph.

    Attributes:
        name: as the file has it.
        dtype: as numpy calls it; the schema's name for a type that is not read here.
        shape: sizes of its axes.
        scale: (C,) of a quantized one, else None.
        zero_point: (C,), else None.
        axis: that several scales lie along.
        constant: its values, or None; of int4 as int8.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: NDArray[np.float32] | None
    zero_point: NDArray[np.int64] | None
    axis: int
    constant: NDArray[Any] | None


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator of the graph.

    Attributes:
        kind: its name in the schema, such as "CONV_2D"; "CUSTOM" for one from elsewhere.
        inputs: places of the tensors that it reads; -1 for one that is left out.
        outputs: places of the tensors that it writes.
        options: its settings, as the schema has them, or None.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any


@dataclass(frozen=True, kw_only=True)
class LitertGraph:
    """The first graph of a file.

    Attributes:
        tensors: all of them.
        operators: in the order in which they run.
        inputs: places of tensors.
        outputs: places of tensors.
        names: of inputs and outputs, as the file's first signature has them; those of the tensors without one.
        orders: of inputs and outputs: axis i of the tensor is axis order[i] of what the network takes or gives. A file
            from elsewhere does not say, and gets the order of the tensor itself.
    """

    tensors: Sequence[Tensor]
    operators: Sequence[Operator]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    names: tuple[tuple[str, ...], tuple[str, ...]]
    orders: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]

    def reads(self, operator: Operator) -> list[Tensor]:
        """Return the tensors that an operator reads."""
        return [self.tensors[place] for place in operator.inputs if place >= 0]

    def writes(self, operator: Operator) -> list[Tensor]:
        """Return the tensors that an operator writes."""
        return [self.tensors[place] for place in operator.outputs]


def read_litert(path: Path) -> LitertGraph:
    """Read the .tflite file at `path`.

    Raises:
        InputError: no such file, no .tflite file, or not all of one.
    """
    if not path.is_file():
        raise InputError(f"model file {path} does not exist; give a .tflite file")
    schema, content = load_schema(), path.read_bytes()
    if content[_IDENTIFIER_PLACE] != _IDENTIFIER:
        raise InputError(f"{path} is no .tflite file: it does not begin as one")
    try:
        model = schema.ModelT.InitFromPackedBuf(content)
        return _graph(schema, model)
    except (AttributeError, IndexError, TypeError, ValueError, struct.error) as error:  # of what is cut off
        raise InputError(f"{path} is damaged, or not all of a .tflite file: {error}") from error


def packed(integers: NDArray[np.int8]) -> bytes:
    """Return integers from -8 to 7 as int4: two a byte, the first one in the lower half."""
    flat = integers.reshape(-1).view(np.uint8) & 15
    flat = np.append(flat, np.zeros(len(flat) % 2, np.uint8))
    return (flat[0::2] | flat[1::2] << 4).tobytes()


def unpacked(stored: NDArray[np.uint8], count: int) -> NDArray[np.int8]:
    """Return the integers, (count,) int8, that int4 holds."""
    halves = np.stack([stored << 4, stored & 240], 1).reshape(-1)[:count]
    return halves.view(np.int8) >> 4


def _graph(schema: Any, model: Any) -> LitertGraph:
    graph = model.subgraphs[0]
    kinds = _names(schema.BuiltinOperator)
    codes = [kinds[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
    dtypes = _names(schema.TensorType)
    inputs, outputs = (tuple(int(place) for place in places) for places in (graph.inputs, graph.outputs))
    tensors = [_tensor(model, tensor, dtypes[tensor.type]) for tensor in graph.tensors]
    return LitertGraph(
        tensors=tensors,
        operators=[
            Operator(
                kind=codes[operator.opcodeIndex],
                inputs=_places(operator.inputs),
                outputs=_places(operator.outputs),
                options=operator.builtinOptions,
            )
            for operator in graph.operators
        ],
        inputs=inputs,
        outputs=outputs,
        names=_end_names(model, tensors, inputs, outputs),
        orders=_orders(model) or (_plain(tensors, inputs), _plain(tensors, outputs)),
    )


def _tensor(model: Any, tensor: Any, kind: str) -> Tensor:
    grid, data = tensor.quantization, model.buffers[tensor.buffer].data
    is_quantized = grid is not None and grid.scale is not None and len(grid.scale) > 0
    shape = () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
    dtype, constant = _DTYPES.get(kind, kind), None
    if data is not None and kind in _DTYPES:
        stored = np.asarray(data, np.uint8)
        values = unpacked(stored, math.prod(shape)) if dtype == "int4" else np.frombuffer(stored.tobytes(), dtype)
        constant = values.reshape(shape)
    return Tensor(
        name=(tensor.name or b"").decode(errors="replace"),
        dtype=dtype,
        shape=shape,
        scale=np.asarray(grid.scale, np.float32) if is_quantized else None,
        zero_point=np.asarray(grid.zeroPoint, np.int64) if is_quantized else None,
        axis=int(grid.quantizedDimension) if is_quantized else 0,
        constant=constant,
    )


def _end_names(
    model: Any, tensors: Sequence[Tensor], inputs: Sequence[int], outputs: Sequence[int]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    signature = model.signatureDefs[0] if model.signatureDefs else None

    def named(places: Sequence[int], entries: Any) -> tuple[str, ...]:
        names = {int(entry.tensorIndex): entry.name.decode(errors="replace") for entry in entries or ()}
        return tuple(names.get(place, tensors[place].name) for place in places)

    return (
        named(inputs, signature and signature.inputs),
        named(outputs, signature and signature.outputs),
    )


def _orders(model: Any) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]] | None:
    for entry in model.metadata or ():
        if entry.name == METADATA.encode():
            orders = json.loads(np.asarray(model.buffers[entry.buffer].data, np.uint8).tobytes())
            inputs, outputs = (tuple(tuple(order) for order in orders[end]) for end in ("inputs", "outputs"))
            return inputs, outputs
    return None


def _plain(tensors: Sequence[Tensor], places: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(range(len(tensors[place].shape))) for place in places)


def _places(places: Any) -> tuple[int, ...]:
    return () if places is None else tuple(int(place) for place in places)


def _names(enumeration: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}
