"""Operators that compute with two values, or with one and a constant."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import fx

from repquant.export.litert.clips import Clip, clipped, fused
from repquant.export.litert.flat_file import Quantization
from repquant.export.litert.scope import Scope, quantization
from repquant.export.litert.values import Value
from repquant.export.refusals import unwritable
from repquant.graph.operators import aten
from repquant.simulation.layers import QuantizedMatmul

_KINDS: Mapping[Any, tuple[str, str]] = {
    aten.add.Tensor: ("ADD", "AddOptions"),
    aten.add.Scalar: ("ADD", "AddOptions"),
    aten.sub.Tensor: ("SUB", "SubOptions"),
    aten.sub.Scalar: ("SUB", "SubOptions"),
    aten.rsub.Scalar: ("SUB", "SubOptions"),
    aten.mul.Tensor: ("MUL", "MulOptions"),
    aten.mul.Scalar: ("MUL", "MulOptions"),
    aten.div.Tensor: ("DIV", "DivOptions"),
    aten.div.Scalar: ("DIV", "DivOptions"),
}
BINARY = tuple(_KINDS)


def write_binary(scope: Scope, node: fx.Node, clip: Clip, grid: Quantization | None) -> Value:
    """Write a sum, difference, product or quotient and the clip behind it: int8 from two int8 values, or float."""
    if node.kwargs.get("alpha", 1) != 1:
        raise unwritable(node, "a factor of the second operand has no form in files for litert")
    left, right = (scope.values.get(side, side) for side in _sides(node))
    if grid is None or not all(isinstance(side, Value) and side.grid is not None for side in (left, right)):
        left, right = (scope.writer.as_float(side) if isinstance(side, Value) else side for side in (left, right))
        grid = None
    sizes, free = scope.form(node.meta["val"])
    values = [side for side in (left, right) if isinstance(side, Value)]
    order = max(values, key=lambda value: (len(value.sizes), np.prod(value.sizes))).order
    tensors = [_aligned(scope, side, order) for side in (left, right)]
    activation, rest = fused(clip, grid)
    kind, options = _KINDS[node.target]
    result = scope.writer.new(node.name, sizes, order, free, grid)
    version = 1 if grid is None else 2
    scope.writer.emit(kind, tensors, result, options, version, fusedActivationFunction=activation)
    return clipped(scope.writer, result, rest)


def _sides(node: fx.Node) -> tuple[Any, Any]:
    left, right = node.args[:2]
    return (right, left) if node.target is aten.rsub.Scalar else (left, right)


def write_matmul(scope: Scope, node: fx.Node) -> Value:
    """Write a matrix product of two values in float; those of a `QuantizedMatmul` are rounded first."""
    left, right = (scope.given(entry) for entry in node.args[:2])
    if node.op == "call_module":
        product = scope.graph.get_submodule(str(node.target))
        assert isinstance(product, QuantizedMatmul)
        left = scope.writer.on_grid(left, quantization(product.left))
        right = scope.writer.on_grid(right, quantization(product.right))
    tensors = [scope.writer.plain(scope.writer.as_float(value)) for value in (left, right)]
    return scope.writer.emit("BATCH_MATMUL", tensors, scope.result(node), "BatchMatMulOptions", adjX=False, adjY=False)


def _aligned(scope: Scope, operand: Any, order: tuple[int, ...]) -> Value | int:
    """Return an operand, a value or a constant, with as many axes as `order` and in that order."""
    rank = len(order)
    if isinstance(operand, Value):
        missing = rank - len(operand.sizes)
        if missing:
            free = None if operand.free is None else operand.free + missing
            operand = scope.writer.reshaped(operand, (1,) * missing + operand.sizes, free)
        return scope.writer.ordered(operand, order)
    array = scope.constant(operand).astype(np.float32)
    return scope.writer.constant("constant", array.reshape((1,) * (rank - array.ndim) + array.shape).transpose(order))
