"""Equal graphs in which the CPU runtimes compute symmetric int8 convolutions before a ReLU as they compute others.

TensorRT needs symmetric int8 with zero point 0, quantized after the ReLU. Neither CPU runtime is at its best with that:

- ONNX Runtime's CPU provider fuses DequantizeLinear, Conv, QuantizeLinear into an integer convolution. A ReLU between
  the last two is absorbed when the smallest integer stands for zero (uint8 with zero point 0), but not for symmetric
  int8: such a convolution runs in float on dequantized inputs, several times slower and with float rounding.
- OpenVINO runs integers either way, but rescales a signed grid as -128 to 127 shifted by 128, which costs the last bits
  of the float that is rounded: more activations land on the other side of a rounding border than on an unsigned grid.

What follows a ReLU uses 0 to 127 only, so each gets an equal graph that it computes exactly: `quantize_before_relu` and
`unsigned_after_relu`. No value changes, also in files of other tools: a node stays as it is where others read what it
gives, or where its grid is not written in the file as one scale and one zero point.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper


def quantize_before_relu(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with Conv -> Q -> DQ -> Relu -> Q where there was Conv -> Relu -> Q on a symmetric signed grid.

    Round and clip are monotonic and keep zero, so Q(ReLU(x)) = ReLU(Q(x)). Only the quantizer may read the ReLU: to
    anybody else it would give rounded values.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    readers = Counter(_reads(graph))
    for relu, quantize in _symmetric_after_relu(graph):
        conv = producers.get(relu.input[0])
        if conv is None or conv.op_type != "Conv" or readers[relu.output[0]] > 1:
            continue
        grid = list(quantize.input[1:])
        before = f"{relu.output[0]}_before_relu"
        nodes = [
            helper.make_node("QuantizeLinear", [relu.input[0], *grid], [f"{before}_q"]),
            helper.make_node("DequantizeLinear", [f"{before}_q", *grid], [before]),
        ]
        position = list(graph.node).index(relu)
        for offset, node in enumerate(nodes):
            graph.node.insert(position + offset, node)
        graph.node[position + 2].input[0] = before
    return model


def unsigned_after_relu(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with Clip(0, 127 scale) -> Q on uint8 where there was Relu -> Q on a symmetric signed grid.

    The integers are the same: the clip is where the signed grid ends. Only DequantizeLinear may read them, as
    their type changes.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    readers = Counter(_reads(graph))
    dequantizers = _symmetric_dequantizers(graph)
    found = [
        (relu, quantize)
        for relu, quantize in _symmetric_after_relu(graph)
        if len(dequantizers[quantize.output[0]]) == readers[quantize.output[0]]
    ]
    if not found:
        return model
    scales = {tensor.name: tensor for tensor in graph.initializer}
    lowest, zero_point = "unsigned_lowest", "unsigned_zero_point"
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.zeros((), np.float32), lowest),
            numpy_helper.from_array(np.zeros((), np.uint8), zero_point),
        ]
    )
    for relu, quantize in found:
        scale = numpy_helper.to_array(scales[quantize.input[1]])
        highest, clipped, integers = (f"{quantize.output[0]}_{part}" for part in ("highest", "clipped", "unsigned"))
        graph.initializer.append(numpy_helper.from_array(np.asarray(127 * scale, np.float32), highest))
        clip = helper.make_node("Clip", [relu.input[0], lowest, highest], [clipped])
        graph.node.insert(list(graph.node).index(quantize), clip)
        for node in dequantizers[quantize.output[0]]:
            node.input[:] = [integers, node.input[1], zero_point]
        quantize.input[0], quantize.input[2], quantize.output[0] = clipped, zero_point, integers
    readers = Counter(_reads(graph))
    for relu in {id(relu): relu for relu, _ in found}.values():
        if not readers[relu.output[0]]:
            graph.node.remove(relu)
    return model


def _symmetric_after_relu(graph: onnx.GraphProto) -> list[tuple[NodeProto, NodeProto]]:
    """Return each ReLU with a quantizer behind it on int8 with one scale and zero point 0.

    Without a zero point a quantizer gives uint8.
    """
    producers = {output: node for node in graph.node for output in node.output}
    zeros = _int8_zeros(graph)
    scales = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and not tensor.dims  # else one for each channel
    }
    pairs = [
        (producers.get(node.input[0]), node)
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[1] in scales and zeros.issuperset(node.input[2:] or [""])
    ]
    return [(relu, quantize) for relu, quantize in pairs if relu is not None and relu.op_type == "Relu"]


def _symmetric_dequantizers(graph: onnx.GraphProto) -> dict[str, list[NodeProto]]:
    """Return the dequantizers without a zero point or with int8 0, by the name of the integers that they read."""
    zeros = _int8_zeros(graph) | {""}
    found: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and zeros.issuperset(node.input[2:]):
            found[node.input[0]].append(node)
    return found


def _int8_zeros(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the constants that are one int8 0."""
    return {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and not tensor.dims and not numpy_helper.to_array(tensor).any()
    }


def _reads(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the name of each tensor once for each of its readers: nodes, those of inner graphs too, and the outside."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _reads(attribute.g)
    yield from (output.name for output in graph.output)
