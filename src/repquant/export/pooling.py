"""Means over an image, and averages over its windows, as the operators that runtimes compute right."""

import numpy as np
import onnx
from onnx import helper, numpy_helper


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


def pad_before_average(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which averages that count their padding read what a Pad has padded, on the same grid.

    OpenVINO pads the integers that it averages with 0, which stands for another value where the zero point is not 0.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    zeros = {t.name for t in graph.initializer if not numpy_helper.to_array(t).any()}
    for node in [node for node in graph.node if node.op_type == "AveragePool"]:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        before = producers.get(node.input[0])
        is_counted = "count_include_pad" in attributes and attributes["count_include_pad"].i == 1
        pads = list(attributes["pads"].ints) if "pads" in attributes else []
        if not is_counted or not any(pads) or before is None or before.op_type != "DequantizeLinear":
            continue
        if before.input[2] in zeros:
            continue
        grid, name, half = list(before.input[1:]), f"{node.output[0]}_padded", len(pads) // 2
        widths = np.asarray([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
        graph.initializer.append(numpy_helper.from_array(widths, f"{name}_widths"))
        nodes = [
            helper.make_node("Pad", [node.input[0], f"{name}_widths"], [name], f"{node.name}_Pad"),
            helper.make_node("QuantizeLinear", [name, *grid], [f"{name}_q"], f"{node.name}_QuantizeLinear"),
            helper.make_node("DequantizeLinear", [f"{name}_q", *grid], [f"{name}_dq"], f"{node.name}_DequantizeLinear"),
        ]
        position = list(graph.node).index(node)
        for offset, new in enumerate(nodes):
            graph.node.insert(position + offset, new)
        node = graph.node[position + len(nodes)]
        node.input[0] = f"{name}_dq"
        for attribute in [a for a in node.attribute if a.name in ("pads", "count_include_pad")]:
            node.attribute.remove(attribute)
    return model
