"""A graph with FP16 scales in float32, for CPU runtimes, which have no FP16 arithmetic of their own.

The scales, biases and float weights of the file are FP16 values, which float32 holds exactly, so the integers are the
same. What lies between them is computed in float32, as the simulation does it, and in FP16 by TensorRT.
"""

import onnx
from onnx import TensorProto, numpy_helper


def widen_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with float32 in the place of FP16 if quantizers have FP16 scales; others are copied as they are.

    Models that take or give FP16 are others: their callers know about it.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    half = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    has_half_scales = any(node.op_type == "QuantizeLinear" and node.input[1] in half for node in graph.node)
    ends = {info.type.tensor_type.elem_type for info in (*graph.input, *graph.output)}
    if not has_half_scales or TensorProto.FLOAT16 in ends:
        return model
    for tensor in graph.initializer:
        _widen(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
    del graph.value_info[:]
    return model


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
