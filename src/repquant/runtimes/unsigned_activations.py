"""An equal graph with unsigned activations, which both CPU runtimes compute right where they fail with signed ones.

- ONNX Runtime on x86 turns int8 with zero point 0 into uint8 with zero point 128 by itself. Where it has put a
  QuantizeLinear behind another operator before, in front of a concatenation for one, 1.32 leaves the old type in the
  attribute `output_dtype` and refuses the graph: "output_dtype INT8 does not match y_zero_point type UINT8".
- OpenVINO 2026.4 gives wrong numbers for a concatenation of a signed tensor with its own maximum pools or slices (the
  spatial pyramid of detectors: off by a quarter of the range).
"""

from collections import Counter, defaultdict

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

_ZERO_POINT = "unsigned_activations_zero_point"


def unsigned_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which what is quantized to int8 with zero point 0, and only dequantized, is uint8 with 128."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    zeros = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.INT8 and not tensor.dims and not numpy_helper.to_array(tensor).any()
    }
    constants = {tensor.name for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    dequantizers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.input[2] in zeros:
            dequantizers[node.input[0]].append(node)
    quantizers = [
        node
        for node in graph.node
        if node.op_type == "QuantizeLinear"
        and len(node.input) == 3
        and node.input[2] in zeros
        and node.input[0] not in constants
        and len(dequantizers[node.output[0]]) == readers[node.output[0]]
    ]
    if quantizers:
        graph.initializer.append(numpy_helper.from_array(np.asarray(128, np.uint8), _ZERO_POINT))
    types = {info.name: info.type.tensor_type for info in graph.value_info}
    for quantize in quantizers:
        for node in (quantize, *dequantizers[quantize.output[0]]):
            node.input[2] = _ZERO_POINT
        if quantize.output[0] in types:
            types[quantize.output[0]].elem_type = TensorProto.UINT8
    return model
