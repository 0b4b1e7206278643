"""How many multiplications a file asks for."""

from collections.abc import Mapping, Sequence
from math import prod

import onnx
from onnx import NodeProto

from repquant.targets.onnx_graph import attribute

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


def multiply_accumulates(model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]) -> int | None:
    """Return the multiply-accumulates of all convolutions and matrix products for inputs of these shapes.

    Those of a layer are counted by its definition, with padding and without what a faster algorithm saves.

    Args:
        model: with Q/DQ nodes, with ONNX's own integer operators, or float.
        inputs: name -> shape.

    Returns:
        None where the shapes of a layer can't be inferred.
    """
    shapes = _shapes(model, inputs)
    total = 0
    for node in model.graph.node:
        if node.op_type in _COUNTS:
            count = _count(node, shapes)
            if count is None:
                return None
            total += count
    return total


def _convolution(_x: Shape, weight: Shape, y: Shape, _: NodeProto) -> int:
    return prod(y) * prod(weight[1:])


def _transposed_convolution(x: Shape, weight: Shape, _y: Shape, _: NodeProto) -> int:
    return prod(x) * prod(weight[1:])


def _matrix_product(x: Shape, _weight: Shape, y: Shape, _: NodeProto) -> int:
    return prod(y) * x[-1]


def _linear(x: Shape, _weight: Shape, y: Shape, node: NodeProto) -> int:
    return prod(y) * x[0 if attribute(node, "transA", 0) else 1]


_COUNTS = {
    "Conv": (_convolution, 1),
    "ConvInteger": (_convolution, 1),
    "ConvTranspose": (_transposed_convolution, 1),
    "Gemm": (_linear, 1),
    "MatMul": (_matrix_product, 1),
    "MatMulInteger": (_matrix_product, 1),
    "QLinearConv": (_convolution, 3),
    "QLinearMatMul": (_matrix_product, 3),
}
"""Operator -> its count, and the place of the weights among its inputs."""


def _count(node: NodeProto, shapes: Shapes) -> int | None:
    count, place = _COUNTS[node.op_type]
    found = [shapes.get(name) for name in (node.input[0], node.input[place], node.output[0])]
    x, weight, y = found
    if x is None or weight is None or y is None:
        return None
    return count(x, weight, y, node)


def _shapes(model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    """Return the shapes that are known to the last number."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for info in model.graph.input:
        if info.name in inputs:
            del info.type.tensor_type.shape.dim[:]
            for size in inputs[info.name]:
                info.type.tensor_type.shape.dim.add().dim_value = size
    del model.graph.value_info[:]  # they may hold names where there are numbers now
    for info in model.graph.output:
        info.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for info in (*inferred.input, *inferred.value_info, *inferred.output):
        dims = info.type.tensor_type.shape.dim
        if info.type.tensor_type.HasField("shape") and all(size.HasField("dim_value") for size in dims):
            known[info.name] = tuple(size.dim_value for size in dims)
    return known
