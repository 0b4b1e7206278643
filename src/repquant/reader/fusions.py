"""What exporters write in several operators and torch has as one, found again.

The integers in a file depend on it: a SiLU is one function of one value, and a bias is part of its layer.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from repquant.reader.names import free_name, layer_path, names_in
from repquant.targets.onnx_graph import OnnxGraph, attribute, graph_of

_Match = tuple[NodeProto, list[NodeProto]]
"""A node that stands for others, and those others besides the one that gives the result."""


def fused(graph: OnnxGraph) -> OnnxGraph:
    """Return a graph with SiLU, hardswish, the exact GELU and biases of matrix products as one operator each."""
    outputs = {value.name for value in graph.model.graph.output}

    def inner(name: str) -> NodeProto | None:
        """Return the node that writes a tensor which is read once and nowhere else."""
        return graph.producers.get(name) if len(graph.readers[name]) == 1 and name not in outputs else None

    model = ModelProto()
    model.CopyFrom(graph.model)
    replaced: dict[str, NodeProto] = {}
    dropped: set[str] = set()
    names = names_in(model)
    visible = outputs | {value.name for value in graph.model.graph.input}
    weights: list[TensorProto] = []
    freed: set[str] = set()
    for node in graph.nodes:
        found = _gated(node, inner) or _gelu(graph, node, inner)
        if found is not None:
            replaced[node.output[0]] = found[0]
            dropped |= {each.output[0] for each in found[1]}
        product = _biased(graph, node, inner)
        if product is not None:
            own = product[0].input[1]
            if len(graph.readers[own]) == 1 and own not in visible:
                names.discard(own)
                freed.add(own)
            made, weight = _linear(graph, node, *product, names)
            names.add(weight.name)
            weights.append(weight)
            replaced[node.output[0]] = made
            dropped.add(product[0].output[0])
    nodes = [
        replaced.get(node.output[0], node) for node in graph.nodes if node.output and node.output[0] not in dropped
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in freed]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *weights])
    return replace(graph_of(model), shapes=graph.shapes)  # onnx knows no shapes behind operators that are not its own


_Inner = Callable[[str], NodeProto | None]


def _gated(node: NodeProto, inner: _Inner) -> _Match | None:
    """Match x * sigmoid(x), and the same with the sigmoid of three pieces that torch calls hard."""
    if node.op_type != "Mul":
        return None
    for x, name in (node.input, reversed(node.input)):
        gate = inner(name)
        if gate is None or gate.input[0] != x:
            continue
        if gate.op_type == "Sigmoid":
            return _one("Swish", x, node), [gate]
        is_torchs = abs(attribute(gate, "alpha", 0.2) - 1 / 6) < 1e-6 and attribute(gate, "beta", 0.5) == 0.5
        if gate.op_type == "HardSigmoid" and is_torchs:
            return _one("HardSwish", x, node), [gate]
    return None


def _gelu(graph: OnnxGraph, node: NodeProto, inner: _Inner) -> _Match | None:
    """Match 0.5 * x * (1 + erf(x / sqrt(2))), the products in any order."""
    factors, inside = _factors(node, inner)
    halves = [name for name in factors if _is(graph, name, 0.5)]
    others = [name for name in factors if name not in halves]
    if len(halves) != 1 or len(others) != 2:
        return None
    for x, name in (others, reversed(others)):
        total = inner(name)
        if total is None or total.op_type != "Add":
            continue
        names = [each for each in total.input if not _is(graph, each, 1.0)]
        erf = inner(names[0]) if len(names) == 1 else None
        scaled = inner(erf.input[0]) if erf is not None and erf.op_type == "Erf" else None
        if scaled is None or erf is None or not _is_over_root_of_two(graph, scaled, x):
            continue
        return _one("Gelu", x, node), [*inside, total, erf, scaled]
    return None


def _factors(node: NodeProto, inner: _Inner) -> tuple[list[str], list[NodeProto]]:
    """Return what a tree of products multiplies, and the products below its root."""
    if node.op_type != "Mul":
        return [], []
    names: list[str] = []
    inside: list[NodeProto] = []
    for name in node.input:
        below = inner(name)
        if below is not None and below.op_type == "Mul":
            names += below.input
            inside.append(below)
        else:
            names.append(name)
    return names, inside


def _is_over_root_of_two(graph: OnnxGraph, node: NodeProto, x: str) -> bool:
    if node.op_type == "Div":
        return node.input[0] == x and _is(graph, node.input[1], 2**0.5)
    others = [name for name in node.input if name != x]
    return node.op_type == "Mul" and len(others) == 1 and _is(graph, others[0], 0.5**0.5)


def _is(graph: OnnxGraph, name: str, value: float) -> bool:
    array = graph.array(name)
    return array is not None and array.size == 1 and bool(abs(array.item() - value) < 1e-6)


def _one(kind: str, x: str, node: NodeProto) -> NodeProto:
    return helper.make_node(kind, [x], node.output, name=node.name)


def _biased(graph: OnnxGraph, node: NodeProto, inner: _Inner) -> tuple[NodeProto, str] | None:
    """Match x @ W + b with a constant matrix and a constant for each of its columns; return the product and b."""
    if node.op_type != "Add":
        return None
    for name, bias in (node.input, reversed(node.input)):
        product, values = inner(name), graph.array(bias)
        if product is None or product.op_type != "MatMul" or values is None:
            continue
        weight = graph.array(product.input[1])
        if weight is not None and weight.ndim == 2 and values.shape == weight.shape[1:]:
            return product, bias
    return None


def _linear(
    graph: OnnxGraph, node: NodeProto, product: NodeProto, bias: str, names: set[str]
) -> tuple[NodeProto, TensorProto]:
    """Return the layer, and its weight (O, I) with a name that none of `names` is."""
    weight = graph.array(product.input[1])
    assert weight is not None
    # Paths are numbered, not weights: a layer of its own holds no second weight.
    taken = {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
    name = f"{free_name(layer_path(product, [product.input[1], bias]), taken)}.weight"
    made = helper.make_node("Linear", [product.input[0], name, bias], node.output, name=product.name)
    return made, numpy_helper.from_array(np.ascontiguousarray(weight.T), name)
