"""The parts of a .tflite file, and its bytes: a flatbuffer with the schema of the package ai-edge-litert."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repquant.targets.litert_file import METADATA, load_schema, packed

_DESCRIPTION = "repquant"
_SIGNATURE = "serving_default"
_SCHEMA_VERSION = 3
_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16  # of constants, which runtimes read where they lie
_TYPES = {"float32": "FLOAT32", "int4": "INT4", "int8": "INT8", "uint8": "UINT8", "int32": "INT32"}


@dataclass(frozen=True)
class Quantization:
    """The grid of an int8 tensor: real = (q - zero_point) * scale.

    Attributes:
        scale: as float32 holds it.
        zero_point: from -128 to 127.
    """

    scale: float
    zero_point: int

    @property
    def scales(self) -> NDArray[np.float32]:
        """The scale, as the file has it: (1,)."""
        return np.asarray([self.scale], np.float32)

    def zero_points(self, shift: int = 0) -> NDArray[np.int64]:
        """Return the zero point of integers that are stored `shift` higher, as the file has it: (1,)."""
        return np.asarray([self.zero_point + shift], np.int64)

    def steps(self, value: float) -> int:
        """Return the integer that stands for a real value, also where it is out of range."""
        return round(value / self.scale) + self.zero_point


@dataclass(frozen=True)
class Named:
    """An input or output of the file.

    Attributes:
        name: that callers find it by.
        tensor: its index.
        order: axis i of the tensor is axis order[i] of what the network takes or gives.
    """

    name: str
    tensor: int
    order: tuple[int, ...]


@dataclass
class FlatFile:
    """Tensors and operators in the order in which they are added."""

    _tensors: list[Any] = field(default_factory=list)
    _operators: list[Any] = field(default_factory=list)
    _codes: dict[tuple[str, int], int] = field(default_factory=dict)
    _buffers: list[bytes] = field(default_factory=lambda: [b""])  # the first one is that of tensors without data
    _constants: dict[tuple[Any, ...], int] = field(default_factory=dict)
    _names: Counter[str] = field(default_factory=Counter)

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        *,
        scale: NDArray[np.float32] | None = None,
        zero_point: NDArray[np.int64] | None = None,
        axis: int = 0,
        free: int | None = None,
        buffer: int = 0,
    ) -> int:
        """Add a tensor and return its index.

        Args:
            name: for people, and for tools that ask for one of its own: a number is added where it is taken.
            shape: sizes of its axes.
            dtype: "float32", "int4", "int8", "uint8" or "int32".
            scale: () or (C,) of a quantized tensor.
            zero_point: as many.
            axis: that scales lie along.
            free: axis that may have any size.
            buffer: of a constant.
        """
        schema = load_schema()
        while self._names[name]:
            self._names[name] += 1
            name = f"{name}_{self._names[name]}"
        self._names[name] += 1
        tensor = schema.TensorT(name=name.encode(), shape=list(shape), buffer=buffer, hasRank=True)
        tensor.type = getattr(schema.TensorType, _TYPES[dtype])
        if free is not None:
            tensor.shapeSignature = [-1 if place == free else size for place, size in enumerate(shape)]
        if scale is not None:
            assert zero_point is not None
            tensor.quantization = schema.QuantizationParametersT(
                scale=np.atleast_1d(scale),
                zeroPoint=np.atleast_1d(zero_point),
                quantizedDimension=axis,
            )
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def constant(
        self,
        name: str,
        array: NDArray[Any],
        *,
        scale: NDArray[np.float32] | None = None,
        zero_point: NDArray[np.int64] | None = None,
        axis: int = 0,
        is_packed: bool = False,
    ) -> int:
        """Add a constant and return its index; the same one for equal ones.

        Args:
            name: for people.
            array: float32, int8 or int32.
            scale: () or (C,) of integers that stand for reals.
            zero_point: as many; zeros by default.
            axis: that scales lie along.
            is_packed: int8 from -8 to 7 is stored as int4.
        """
        if scale is not None and zero_point is None:
            zero_point = np.zeros(scale.shape, np.int64)
        content = packed(array) if is_packed else np.ascontiguousarray(array).tobytes()
        dtype = "int4" if is_packed else array.dtype.name
        grid = () if scale is None or zero_point is None else (scale.tobytes(), zero_point.tobytes(), axis)
        key = (content, array.shape, dtype, grid)
        if key not in self._constants:
            self._buffers.append(content)
            self._constants[key] = self.tensor(
                name,
                array.shape,
                dtype,
                scale=scale,
                zero_point=zero_point,
                axis=axis,
                buffer=len(self._buffers) - 1,
            )
        return self._constants[key]

    def operator(
        self, kind: str, inputs: Sequence[int], output: int, options: str = "", version: int = 1, **settings: Any
    ) -> None:
        """Add an operator.

        Args:
            kind: its name in the schema, such as "CONV_2D".
            inputs: tensors.
            output: tensor.
            options: name of its options in the schema, such as "Conv2DOptions"; "" for none.
            version: of the operator, the oldest that knows what is asked for.
            settings: fields of the options.
        """
        schema = load_schema()
        code = self._codes.setdefault((kind, version), len(self._codes))
        operator = schema.OperatorT(opcodeIndex=code, inputs=list(inputs), outputs=[output])
        if options:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(schema, f"{options}T")(**settings)
        self._operators.append(operator)

    def content(self, inputs: Sequence[Named], outputs: Sequence[Named]) -> bytes:
        """Return the bytes of the file.

        It has one signature with the names of inputs and outputs, and metadata of ours in JSON: the order of the axes
        of each of them.
        """
        import flatbuffers

        schema = load_schema()
        ends = {
            kind: [schema.TensorMapT(name=end.name.encode(), tensorIndex=end.tensor) for end in values]
            for kind, values in (("inputs", inputs), ("outputs", outputs))
        }
        orders = {"inputs": [end.order for end in inputs], "outputs": [end.order for end in outputs]}
        buffers = [*self._buffers, json.dumps(orders).encode()]
        graph = schema.SubGraphT(
            tensors=self._tensors,
            operators=self._operators,
            inputs=[end.tensor for end in inputs],
            outputs=[end.tensor for end in outputs],
            name=b"main",
        )
        model = schema.ModelT(
            version=_SCHEMA_VERSION,
            description=_DESCRIPTION.encode(),
            subgraphs=[graph],
            operatorCodes=[_code(kind, version) for kind, version in self._codes],
            buffers=[_AlignedBuffer(content) for content in buffers],
            metadata=[schema.MetadataT(name=METADATA.encode(), buffer=len(buffers) - 1)],
            signatureDefs=[schema.SignatureDefT(signatureKey=_SIGNATURE.encode(), subgraphIndex=0, **ends)],
        )
        builder = flatbuffers.Builder(sum(map(len, buffers)) + 2**16)
        builder.Finish(model.Pack(builder), _IDENTIFIER)
        return bytes(builder.Output())


class _AlignedBuffer:
    """A constant's bytes where a runtime may read them as floats: the schema's own class leaves out the alignment."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def Pack(self, builder: Any) -> int:  # noqa: N802  # the schema's classes call it so
        schema, size = load_schema(), len(self._content)
        vector = None
        if size:
            builder.StartVector(1, size, _ALIGNMENT)
            builder.head -= size
            builder.Bytes[builder.head : builder.head + size] = self._content
            vector = builder.EndVector()
        schema.BufferStart(builder)
        if vector is not None:
            schema.BufferAddData(builder, vector)
        end: int = schema.BufferEnd(builder)
        return end


def _code(kind: str, version: int) -> Any:
    schema = load_schema()
    code: int = getattr(schema.BuiltinOperator, kind)
    # Readers of before 2020 know the first field alone, of 8 bits.
    return schema.OperatorCodeT(deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=version)
