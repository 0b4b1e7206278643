"""An equal graph in which the CPU runtimes compute symmetric int8 convolutions before a ReLU as they compute others.

ONNX Runtime's CPU provider fuses DequantizeLinear, Conv, QuantizeLinear into an integer convolution. A ReLU between the
last two is absorbed when the smallest integer stands for zero (uint8 with zero point 0), but not for symmetric int8,
which TensorRT needs: such a convolution runs in float on dequantized inputs, several times slower and with float
rounding. OpenVINO runs integers either way, but rounds more activations the other way. Quantizing before the ReLU as
well, on the same grid, changes no value: round and clip are monotonic and keep zero, so Q(ReLU(x)) = ReLU(Q(x)).
"""

from pathlib import Path

import onnx
from onnx import helper


def quantize_before_relu(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with Conv -> Q -> DQ -> Relu -> Q where there was Conv -> Relu -> Q on a signed grid."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    signed = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and not onnx.numpy_helper.to_array(tensor).any()
    }
    for quantize in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        relu = producers.get(quantize.input[0])
        conv = producers.get(relu.input[0]) if relu is not None and relu.op_type == "Relu" else None
        if relu is None or conv is None or conv.op_type != "Conv" or quantize.input[2] not in signed:
            continue
        grid = list(quantize.input[1:])
        before = f"{relu.input[0]}_before_relu"
        nodes = [
            helper.make_node("QuantizeLinear", [relu.input[0], *grid], [f"{before}_q"]),
            helper.make_node("DequantizeLinear", [f"{before}_q", *grid], [before]),
        ]
        position = list(graph.node).index(relu)
        for offset, node in enumerate(nodes):
            graph.node.insert(position + offset, node)
        graph.node[position + 2].input[0] = before
    return model


def load_equal_graph(path: Path) -> bytes:
    """Return the model at `path` in this form, serialized."""
    content: bytes = quantize_before_relu(onnx.load(path)).SerializeToString()
    return content
