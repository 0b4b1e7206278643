"""The values of a network in a file: float or int8, in the order of axes that LiteRT's operators want."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repquant.export.litert.flat_file import FlatFile, Quantization

CHANNELS_LAST = (0, 2, 3, 1)


@dataclass(frozen=True)
class Value:
    """A tensor of the file that holds a value of the network.

    Attributes:
        tensor: its index.
        sizes: of the value's axes, as the network has them.
        order: axis i of the tensor is axis order[i] of the value.
        free: axis of the value that is as long as the batch, if the batch may have any size.
        grid: of int8; None for float32.
    """

    tensor: int
    sizes: tuple[int, ...]
    order: tuple[int, ...]
    free: int | None
    grid: Quantization | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the tensor's axes."""
        return tuple(self.sizes[axis] for axis in self.order)

    def place(self, axis: int) -> int:
        """Return the tensor's axis that holds an axis of the value, which may be counted from the last."""
        return self.order.index(axis % len(self.sizes))


class Writer:
    """Adds operators to a file, and the conversions that they need between them, each once."""

    def __init__(self) -> None:
        self.file = FlatFile()
        self._made: dict[tuple[Value, Any], Value] = {}

    def constant(self, name: str, array: NDArray[Any]) -> int:
        """Add a constant without a grid."""
        return self.file.constant(name, array)

    def constant_on(self, name: str, array: NDArray[np.int8], grid: Quantization) -> int:
        """Add a constant of integers on the grid of a value."""
        return self.file.constant(name, array, scale=grid.scales, zero_point=grid.zero_points())

    def indices(self, numbers: Sequence[Any]) -> int:
        """Add a constant of sizes, axes or places."""
        return self.constant("indices", np.asarray(numbers, np.int32))

    def new(
        self,
        name: str,
        sizes: Sequence[int],
        order: Sequence[int],
        free: int | None,
        grid: Quantization | None = None,
        dtype: str = "",
    ) -> Value:
        """Add a tensor that an operator, or the caller, will fill.

        Args:
            name: for people.
            sizes: of the value's axes.
            order: of the tensor's axes.
            free: axis of the value that is as long as the batch.
            grid: None for floats.
            dtype: "uint8" where that is stored instead, 128 higher.
        """
        value = Value(-1, tuple(sizes), tuple(order), free, grid)
        shift = 128 if dtype == "uint8" else 0
        tensor = self.file.tensor(
            name,
            value.shape,
            dtype or ("float32" if grid is None else "int8"),
            scale=None if grid is None else grid.scales,
            zero_point=None if grid is None else grid.zero_points(shift),
            free=None if free is None else value.order.index(free),
        )
        return replace(value, tensor=tensor)

    def emit(
        self,
        kind: str,
        inputs: Sequence[Value | int],
        result: Value,
        options: str = "",
        version: int = 1,
        **fields: Any,
    ) -> Value:
        """Add an operator that fills `result`, and return that."""
        tensors = [entry.tensor if isinstance(entry, Value) else entry for entry in inputs]
        self.file.operator(kind, tensors, result.tensor, options, version, **fields)
        return result

    def like(self, name: str, value: Value, grid: Quantization | None = None) -> Value:
        """Add a tensor of the shape of another one."""
        return self.new(name, value.sizes, value.order, value.free, grid)

    def as_float(self, value: Value) -> Value:
        """Return a value in float32."""
        if value.grid is None:
            return value
        key = (value, "float")
        if key not in self._made:
            result = self.like("dequantized", value)
            self._made[key] = self.emit("DEQUANTIZE", [value], result, "DequantizeOptions", 2)
        return self._made[key]

    def on_grid(self, value: Value, grid: Quantization) -> Value:
        """Return a value as int8 on a grid."""
        if value.grid == grid:
            return value
        value = self.as_float(value)
        key = (value, grid)
        if key not in self._made:
            result = self.like("quantized", value, grid)
            self._made[key] = self.emit("QUANTIZE", [value], result, "QuantizeOptions")
        return self._made[key]

    def ordered(self, value: Value, order: Sequence[int]) -> Value:
        """Return a value with its axes in another order in the tensor."""
        order = tuple(order)
        if value.order == order:
            return value
        key = (value, order)
        if key not in self._made:
            result = self.new("transposed", value.sizes, order, value.free, value.grid)
            if _moves_nothing(value, order):
                self._made[key] = self.reread(value, result)
            else:
                places = self.indices([value.order.index(axis) for axis in order])
                version = 1 if value.grid is None else 2
                self._made[key] = self.emit("TRANSPOSE", [value, places], result, "TransposeOptions", version)
        return self._made[key]

    def plain(self, value: Value) -> Value:
        """Return a value with its axes in the network's order."""
        return self.ordered(value, range(len(value.sizes)))

    def reshaped(self, value: Value, sizes: Sequence[int], free: int | None) -> Value:
        """Return a value with other axes; the numbers keep their order in the network."""
        order = tuple(range(len(value.sizes)))
        if not _moves_nothing(value, order):
            value = self.plain(value)
        result = self.new("reshaped", sizes, range(len(sizes)), free, value.grid)
        return self.reread(value, result)

    def reread(self, value: Value, result: Value) -> Value:
        """Fill a tensor with the numbers of another one in the order in which they lie."""
        free = None if result.free is None else result.order.index(result.free)
        shape = [-1 if place == free else size for place, size in enumerate(result.shape)]
        return self.emit("RESHAPE", [value, self.indices(shape)], result, "ReshapeOptions", newShape=shape)


def _moves_nothing(value: Value, order: Sequence[int]) -> bool:
    """Whether another order of axes leaves the numbers where they are, as all axes that move have one place."""
    long = [axis for axis in value.order if value.sizes[axis] != 1 or axis == value.free]
    return long == [axis for axis in order if value.sizes[axis] != 1 or axis == value.free]
