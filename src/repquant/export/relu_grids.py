"""What a layer gives to a ReLU, rounded on the way where a runtime would otherwise compute the layer in floats."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

_SUMS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add"})


def round_before_relu(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with a quantizer in front of ReLUs too, where the grid behind them has negative values.

    ONNX Runtime takes a ReLU into a layer's integers only where the zero point is the least integer. A concatenation
    with values of both signs has another. To round before and behind gives the integers that rounding behind gives:
    0 is on the grid. The limits of other clips need not be, so these stay as they are: OpenVINO takes two quantizers on
    one grid for one.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes = []
    for node in graph.node:
        before, behind = producers.get(node.input[0]) if node.input else None, readers.get("".join(node.output[:1]), [])
        if (
            node.op_type == "Relu"
            and before is not None
            and before.op_type in _SUMS
            and len(behind) == len(readers[node.input[0]]) == 1
            and behind[0].op_type == "QuantizeLinear"
            and _has_negative_values(constants, behind[0])
        ):
            grid, name = list(behind[0].input[1:]), f"{node.input[0]}_rounded"
            nodes += [
                helper.make_node("QuantizeLinear", [node.input[0], *grid], [f"{name}_q"], f"{name}/QuantizeLinear"),
                helper.make_node("DequantizeLinear", [f"{name}_q", *grid], [name], f"{name}/DequantizeLinear"),
            ]
            node.input[0] = name
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _has_negative_values(constants: dict[str, np.ndarray], quantizer: onnx.NodeProto) -> bool:
    if len(quantizer.input) < 3 or quantizer.input[2] not in constants:
        return False
    zero_point = constants[quantizer.input[2]]
    return bool((zero_point > np.iinfo(zero_point.dtype).min).any())
