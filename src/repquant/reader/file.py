"""A file from its path to a graph of operators that can be read; or an error that says what to do."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper
from onnxscript import optimizer

from repquant.errors import InputError, shortened
from repquant.reader.fusions import fused
from repquant.reader.limits import MOST_GROWN, made
from repquant.reader.operators import ONLY_NUMBERS, OPERATORS
from repquant.targets.onnx_graph import OnnxGraph, blaming_the_file, graph_of, node_name, read_graph

OPSETS = range(13, 23)
"""Versions of ONNX's operators whose meaning the tables have."""

_MOST_FOLDED = 1 << 27  # elements of a constant
_OWN_DOMAINS = ("", "ai.onnx")
_QUANTIZED = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
}
_CONSTANTS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}
_CONTROL_FLOW = {"If", "Loop", "Scan"}
_OTHER_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def read_float_graph(path: Path) -> OnnxGraph:
    """Return the graph of a float file, with its functions written out.

    Raises:
        InputError: no such file, no ONNX file, or one that can't be read: quantized, of another opset or float type,
            with operators that are not known, or with parts that are missing.
    """
    graph = read_graph(path)
    with blaming_the_file(path, graph.model):
        if graph.opset not in OPSETS:
            raise InputError(
                f"{path} has opset {graph.opset}; allowed are {OPSETS[0]} to {OPSETS[-1]}: export it again with one "
                "of them, or let onnx.version_converter.convert_version(model, 17) change it"
            )
        _require_float(path, graph)
        _require_followable(path, graph)
        _require_order(path, graph)
        graph = fused(_with_constants_as_tensors(path, _folded(path, graph)))
        _require_known(path, graph)
    if not list(inputs_of(graph)):
        raise InputError(f"{path} takes no inputs, so there is nothing to calibrate")
    return graph


def _require_order(path: Path, graph: OnnxGraph) -> None:
    """Accept a graph whose nodes read only what is there."""
    written = {"", *graph.constants, *(value.name for value in graph.model.graph.input)}
    for node in graph.nodes:
        for name in node.input:
            if name not in written:
                reads = f"{_named(node)} reads {shortened(name)}, which nothing before it writes"
                raise InputError(f"{path} is no valid ONNX file: {reads}")
        written |= set(node.output)
    for output in graph.model.graph.output:
        if output.name not in written:
            raise InputError(f"{path} is no valid ONNX file: nothing writes its output {shortened(output.name)}")


def _folded(path: Path, graph: OnnxGraph) -> OnnxGraph:
    """Return a graph in which functions are written out and what follows from constants is one."""
    model = ir.serde.deserialize_model(graph.model)
    optimizer.inline(model)
    try:
        optimizer.fold_constants(
            model, input_size_limit=_MOST_FOLDED, output_size_limit=_MOST_FOLDED, should_fold=_may_be_folded
        )
    except MemoryError as error:
        raise InputError(f"the constants of {path} do not fit in memory") from error
    optimizer.remove_unused_nodes(model)
    return graph_of(ir.serde.serialize_model(model))


def _may_be_folded(node: ir.Node) -> bool | None:
    """Say no to a node of constants that makes far more than the file holds; it is computed, or refused, later."""
    values = [None if each is None or each.const_value is None else each.const_value.numpy() for each in node.inputs]
    attributes = {name: entry.value for name, entry in node.attributes.items()}
    return False if values and made(node.op_type, values, attributes) > MOST_GROWN else None


def _with_constants_as_tensors(path: Path, graph: OnnxGraph) -> OnnxGraph:
    """Return a graph in which all constants are initializers."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.node[:]
    for node in graph.nodes:
        if node.op_type != "Constant":
            model.graph.node.append(node)
            continue
        (entry,) = node.attribute
        value = helper.get_attribute_value(entry)
        if entry.name == "value":
            tensor = value
        elif entry.name in _CONSTANTS:
            tensor = numpy_helper.from_array(np.asarray(value, _CONSTANTS[entry.name]))
        else:
            raise InputError(f"{path} has a constant that can't be read: {_named(node)} with {entry.name}")
        model.graph.initializer.append(tensor)
        model.graph.initializer[-1].name = node.output[0]
    return graph_of(model)


def _require_float(path: Path, graph: OnnxGraph) -> None:
    quantized = sorted({node.op_type for node in graph.nodes if _is_quantized(node)})
    if quantized:
        raise InputError(f"{path} is quantized already ({', '.join(quantized)}); give the float file it was made from")
    others = {tensor.data_type for tensor in graph.constants.values()} | {
        value.type.tensor_type.elem_type for value in graph.model.graph.input
    }
    for kind in _OTHER_FLOATS:
        if kind in others:
            name = TensorProto.DataType.Name(kind).lower()
            raise InputError(f"{path} holds values of type {name}; export the network in float32")


def _is_quantized(node: NodeProto) -> bool:
    return node.op_type in _QUANTIZED or (node.domain == "com.microsoft" and node.op_type.startswith(("QLinear", "Q")))


def _require_followable(path: Path, graph: OnnxGraph) -> None:
    control = [node for node in graph.nodes if node.op_type in _CONTROL_FLOW or _has_body(node)]
    if control:
        raise InputError(
            f"{path} decides while it runs what to compute: {_named(control[0])}; export the network without control "
            "flow, by tracing it"
        )
    of_file = {function.domain for function in graph.model.functions}
    foreign = sorted({node.domain for node in graph.nodes if node.domain not in (*_OWN_DOMAINS, *of_file)})
    if foreign:
        raise InputError(
            f"{path} has operators of {', '.join(map(shortened, foreign))}, which only some runtimes know; give the "
            "file as the exporter wrote it, before a runtime optimized it"
        )


def _require_known(path: Path, graph: OnnxGraph) -> None:
    unknown = sorted({node.op_type for node in graph.nodes if node.op_type not in {*OPERATORS, *ONLY_NUMBERS}})
    if unknown:
        first = next(node for node in graph.nodes if node.op_type == unknown[0])
        raise InputError(
            f"{path} has operators that can't be read: {', '.join(map(shortened, unknown))} (first {_named(first)}); "
            "quantize the network in PyTorch, or the part of the file without them (onnx.utils.extract_model)"
        )


def _has_body(node: NodeProto) -> bool:
    return any(entry.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for entry in node.attribute)


def _named(node: NodeProto) -> str:
    return f"{node.op_type} {shortened(node_name(node))}"


def inputs_of(graph: OnnxGraph) -> Iterator[onnx.ValueInfoProto]:
    """Yield what has to be given; initializers may stand among the inputs of a file too."""
    for value in graph.model.graph.input:
        if value.name not in graph.constants:
            yield value
