"""The mean over an image as the operator that runtimes know best."""

import onnx
from onnx import numpy_helper


def pool_globally(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with GlobalAveragePool where ReduceMean takes the mean of (N, C, H, W) over H and W and keeps them.

    The exporter writes the second for an adaptive pool to 1 x 1. TensorRT pools in INT8 and reduces in floats alone,
    and the opsets that its releases before 10 know have the axes in an attribute.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    ranks = {info.name: len(info.type.tensor_type.shape.dim) for info in model.graph.value_info}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        axes = constants[node.input[1]].tolist()
        keeps = {attribute.name: attribute.i for attribute in node.attribute}.get("keepdims", 1)
        if sorted(axes) in ([-2, -1], [2, 3]) and keeps and ranks.get(node.input[0]) == 4:
            node.op_type = "GlobalAveragePool"
            del node.attribute[:], node.input[1:]
    return model
