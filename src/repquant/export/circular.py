"""Circular padding in operators that every runtime knows."""

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper


def unwrap_padding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which slices and concatenations stand for Pad in mode `wrap`, which OpenVINO does not read."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for pad in [node for node in graph.node if _wraps(node) and node.input[1] in constants]:
        pads = constants[pad.input[1]].tolist()
        axes = constants[pad.input[3]].tolist() if len(pad.input) > 3 and pad.input[3] else list(range(len(pads) // 2))
        widths = [(axis, *pair) for axis, *pair in zip(axes, pads, pads[len(axes) :], strict=False) if any(pair)]
        position = list(graph.node).index(pad)
        current = pad.input[0]
        for step, (axis, before, after) in enumerate(widths):
            name = f"{pad.output[0]}_{step}"
            nodes, initializers, result = _extended(current, name, axis, before, after)
            for node in nodes:
                graph.node.insert(position, node)
                position += 1
            graph.initializer.extend(initializers)
            current = result
        graph.node.remove(pad)
        graph.node[position - 1].output[0] = pad.output[0]
    return model


def _wraps(node: NodeProto) -> bool:
    return node.op_type == "Pad" and any(a.name == "mode" and a.s == b"wrap" for a in node.attribute)


def _extended(
    source: str, name: str, axis: int, before: int, after: int
) -> tuple[list[NodeProto], list[TensorProto], str]:
    """Return the nodes and constants that put the end in front of a tensor and the start behind it, along one axis."""
    nodes: list[NodeProto] = []
    initializers: list[TensorProto] = []
    parts = [source]
    largest = np.iinfo(np.int64).max
    for part, start, end in (("front", -before, largest), ("behind", 0, after)):
        if not (before if part == "front" else after):
            continue
        output = f"{name}_{part}"
        values = {"start": start, "end": end, "axis": axis}
        initializers += [numpy_helper.from_array(np.asarray([v], np.int64), f"{output}_{k}") for k, v in values.items()]
        nodes.append(
            helper.make_node("Slice", [source, *(f"{output}_{k}" for k in values)], [output], f"{output}/Slice")
        )
        parts.insert(0 if part == "front" else len(parts), output)
    nodes.append(helper.make_node("Concat", parts, [name], f"{name}/Concat", axis=axis))
    return nodes, initializers, name
