"""What the writers of operators share: the values of nodes that are written, and the sizes of those that are not."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from repquant.errors import InputError
from repquant.export.litert.flat_file import Quantization
from repquant.export.litert.values import CHANNELS_LAST, Value, Writer
from repquant.export.refusals import unwritable
from repquant.graph.arguments import arguments
from repquant.graph.operators import operands
from repquant.simulation.layers import FakeQuantize


@dataclass(frozen=True, kw_only=True)
class Scope:
    """A network on its way into a file.

    Attributes:
        graph: captured, or simulated.
        batch: number of images; that of the shapes in the file where any number may come.
        is_free: any number may come.
        writer: of the file.
        values: of the nodes that are written; several for an operator that splits.
    """

    graph: fx.GraphModule
    batch: int
    is_free: bool
    writer: Writer = field(default_factory=Writer)
    values: dict[fx.Node, Value | tuple[Value, ...]] = field(default_factory=dict)

    def value(self, node: Any) -> Value:
        """Return what is written for a node."""
        value = self.values[node]
        assert isinstance(value, Value)
        return value

    def given(self, node: Any) -> Value:
        """Return the same, or the tensor of a constant in float32.

        Raises:
            InputError: the node gives no floats and is no constant, or an empty one.
        """
        if node in self.values:
            return self.value(node)
        if node.op != "get_attr":
            raise unwritable(node, "it gives no floats")
        array = self.constant(node).astype(np.float32)
        if array.size == 0:
            raise unwritable(node, "an empty constant is not written to files for litert")
        tensor = self.writer.constant("constant", array)
        return Value(tensor, array.shape, tuple(range(array.ndim)), None, None)

    def operands(self, node: fx.Node) -> list[Value]:
        """Return what an operator or a layer computes with, without constants.

        Raises:
            InputError: it computes with constants alone.
        """
        found = [self.value(operand) for operand in operands(node)]
        if not found:
            raise unwritable(node, "what is computed of constants alone is not written to files for litert")
        return found

    def form(self, value: Any) -> tuple[tuple[int, ...], int | None]:
        """Return the sizes of a traced value's axes, and which of them is as long as the batch.

        Raises:
            InputError: several are.
        """
        free = [axis for axis, size in enumerate(value.shape) if isinstance(size, torch.SymInt)] if self.is_free else []
        if len(free) > 1:
            raise InputError(
                f"a tensor has the sizes {tuple(value.shape)}; a .tflite file can leave one open: write it for a fixed "
                "batch"
            )
        return tuple(self._size(size) for size in value.shape), free[0] if free else None

    def result(self, node: fx.Node, order: Sequence[int] | None = None, grid: Quantization | None = None) -> Value:
        """Add the tensor for a node's value; in the network's order of axes where none is given."""
        sizes, free = self.form(node.meta["val"])
        return self.writer.new(node.name, sizes, range(len(sizes)) if order is None else order, free, grid)

    def constant(self, node: Any) -> NDArray[Any]:
        """Return the array of a constant that a node stands for, or of a number."""
        if isinstance(node, fx.Node):
            assert node.op == "get_attr"
            value: Any = operator.attrgetter(str(node.target))(self.graph)
            assert isinstance(value, torch.Tensor)
            array: NDArray[Any] = value.detach().cpu().numpy()
            return array
        return np.asarray(node, np.float32)

    def image(self, value: Value) -> Value:
        """Return a value (N, C, H, W), or (N, C, L) as (N, C, 1, L), with channels last in the tensor."""
        if len(value.sizes) == 4:
            return self.writer.ordered(value, CHANNELS_LAST)
        batch, channels, length = value.sizes
        row = self.writer.new("row", (batch, channels, 1, length), CHANNELS_LAST, value.free, value.grid)
        return self.writer.reread(self.writer.ordered(value, (0, 2, 1)), row)

    def image_result(self, node: fx.Node, grid: Quantization | None = None) -> Value:
        """Add the tensor for a node's value with channels last, (N, C, L) as (N, C, 1, L)."""
        sizes, free = self.form(node.meta["val"])
        sizes = sizes if len(sizes) == 4 else (*sizes[:2], 1, sizes[2])
        return self.writer.new(node.name, sizes, CHANNELS_LAST, free, grid)

    def from_image(self, node: fx.Node, image: Value) -> Value:
        """Return a node's value, which was written as an image."""
        if node.meta["val"].ndim == 4:
            return image
        return self.writer.reread(image, self.result(node, (0, 2, 1), image.grid))

    def _size(self, size: Any) -> int:
        if not isinstance(size, torch.SymInt):
            return int(size)
        expression = size.node.expr
        return int(expression.xreplace(dict.fromkeys(expression.free_symbols, self.batch)))


def quantization(fake: FakeQuantize) -> Quantization:
    """Return the grid of a rounding as int8: unsigned integers are stored 128 lower.

    Raises:
        InputError: it has fewer than 8 bits.
    """
    if fake.scheme.bits != 8:
        raise InputError(f"activations of {fake.scheme.bits} bits can only be simulated; a file needs 8")
    return Quantization(fake.scale, fake.zero_point - (0 if fake.scheme.signed else 128))


def argument(node: fx.Node, name: str) -> Any:
    """Return an argument of an operator by its name in the schema, with the default where it is left out."""
    return arguments(node)[name]
