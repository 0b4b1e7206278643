"""The values of a network in the files: float, or int8 on a grid, each without the axis of images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import fx

from repquant.errors import InputError
from repquant.export.ncnn.file_pair import FilePair, Settings, floats
from repquant.export.refusals import unwritable
from repquant.graph.operators import operands
from repquant.simulation.layers import FakeQuantize

_INT8, _FLOAT = 3, 1
_MOST_AXES = 3


@dataclass(frozen=True)
class Value:
    """A blob that holds a value of the network.

    Attributes:
        blob: its name.
        sizes: of the value's axes without the first, the images.
        step: of int8: what an integer stands for; None for floats.
    """

    blob: str
    sizes: tuple[int, ...]
    step: float | None = None


class Writer:
    """Adds layers to a pair of files, and the conversions that they need between them, each once."""

    def __init__(self, file: FilePair) -> None:
        self.file = file
        self._made: dict[tuple[Value, Any], Value] = {}

    def emit(
        self,
        kind: str,
        name: str,
        reads: Sequence[Value],
        sizes: Sequence[int],
        settings: Settings | None = None,
        numbers: Sequence[bytes] = (),
        step: float | None = None,
    ) -> Value:
        """Add a layer with one result, and return that."""
        (blob,) = self.file.add(kind, name, [value.blob for value in reads], settings, numbers)
        return Value(blob, tuple(sizes), step)

    def as_float(self, value: Value) -> Value:
        """Return a value in float32."""
        if value.step is None:
            return value
        key = (value, "float")
        if key not in self._made:
            name = f"{value.blob}_float"
            steps = self.emit("Cast", f"{name}_steps", [value], value.sizes, {0: _INT8, 1: _FLOAT})
            scale = np.full(value.sizes[0], value.step, np.float32)
            self._made[key] = self.emit("Scale", name, [steps], value.sizes, {0: len(scale)}, [floats(scale)])
        return self._made[key]

    def on_grid(self, value: Value, fake: FakeQuantize) -> Value:
        """Return a value as int8 on the grid of a rounding.

        Raises:
            InputError: a grid that ncnn does not have.
        """
        if fake.scheme.bits != 8:
            raise InputError(f"activations of {fake.scheme.bits} bits can only be simulated; a file needs 8")
        if fake.zero_point != 0 or not fake.scheme.narrow:
            raise InputError("ncnn rounds activations to -127 to 127 with zero point 0; quantize for target ncnn")
        if value.step == fake.scale:
            return value
        key = (self.as_float(value), fake.scale)
        if key not in self._made:
            self._made[key] = self.rounded(key[0], float(np.float32(1) / np.float32(fake.scale)), fake.scale)
        return self._made[key]

    def rounded(self, value: Value, factor: float, step: float) -> Value:
        """Return float values times a factor, rounded to int8."""
        return self.emit(
            "Quantize", f"{value.blob}_int8", [value], value.sizes, {0: 1}, [floats(np.asarray([factor]))], step
        )

    def reshaped(self, value: Value, sizes: Sequence[int], name: str) -> Value:
        """Return a value with other axes: int8 where it becomes a row, else in float, as ncnn moves few int8 values."""
        if value.sizes == tuple(sizes):
            return value
        if len(sizes) == 1:
            return replace(self.emit("Flatten", name, [value], sizes), step=value.step)
        return self.emit("Reshape", name, [self.as_float(value)], sizes, dict(enumerate(reversed(sizes))))


@dataclass(frozen=True, kw_only=True)
class Scope:
    """A network on its way into files.

    Attributes:
        graph: captured, or simulated.
        writer: of the files.
        values: of the nodes that are written.
    """

    graph: fx.GraphModule
    writer: Writer
    values: dict[fx.Node, Value]

    def operands(self, node: fx.Node) -> list[Value]:
        """Return what an operator or a layer computes with, without constants.

        Raises:
            InputError: it computes with constants alone.
        """
        found = [self.values[operand] for operand in operands(node)]
        if not found:
            raise unwritable(node, "what is computed of constants alone is not written to files for ncnn")
        return found

    def floats(self, node: fx.Node) -> list[Value]:
        """Return the same in float."""
        return [self.writer.as_float(value) for value in self.operands(node)]


def sizes_of(node: fx.Node) -> tuple[int, ...]:
    """Return the sizes of the axes of a node's value without the first one, the images.

    Raises:
        InputError: the images are along another axis, the value is empty, or there are more axes than ncnn's blobs
            have.
    """
    shape = node.meta["val"].shape
    sizes = shape[1:]
    if 0 in sizes:
        raise unwritable(node, "an empty value is not written to files for ncnn")
    if not 1 <= len(sizes) <= _MOST_AXES or not all(isinstance(size, int) for size in sizes):
        shown = " x ".join(map(str, shape))
        raise unwritable(node, f"it gives {shown}, and a file for ncnn holds one image of one to three axes")
    return tuple(int(size) for size in sizes)
