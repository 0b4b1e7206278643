"""One QuantizeLinear where several would put the same tensor on the same grid."""

from collections.abc import Callable

import onnx
from onnx import numpy_helper


def share_quantizers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which equal QuantizeLinear nodes are one, and the DequantizeLinear nodes behind them too.

    A tensor with two consumers (the convolution of a block and its shortcut) is quantized by each of them in the
    modules; a runtime need not find out that it is the same. What lies on a grid already is not quantized to it again.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}

    def content(name: str) -> object:
        tensor = constants.get(name)
        return name if tensor is None else (tensor.data_type, numpy_helper.to_array(tensor).tobytes())

    _skip_repeated(graph, content)
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        first: dict[tuple[object, ...], str] = {}
        for node in [node for node in graph.node if node.op_type == kind and node.input[0] not in constants]:
            key = (node.input[0], *map(content, node.input[1:]))
            kept = first.setdefault(key, node.output[0])
            if kept != node.output[0]:
                _replace_input(graph, node.output[0], kept)
                graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for name, tensor in constants.items():
        if name not in used:
            graph.initializer.remove(tensor)
    return model


def _skip_repeated(graph: onnx.GraphProto, content: Callable[[str], object]) -> None:
    """Read the tensor itself where a QuantizeLinear quantizes what a DequantizeLinear gives on the same grid."""
    producers = {name: node for node in graph.node for name in node.output}
    for node in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        before = producers.get(node.input[0])
        if before is None or before.op_type != "DequantizeLinear":
            continue
        if [*map(content, before.input[1:])] == [*map(content, node.input[1:])]:
            _replace_input(graph, node.output[0], before.input[0])
            graph.node.remove(node)


def _replace_input(graph: onnx.GraphProto, name: str, replacement: str) -> None:
    for node in graph.node:
        for index, given in enumerate(node.input):
            if given == name:
                node.input[index] = replacement
