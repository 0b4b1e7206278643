"""Which operators of a file ONNX Runtime's CPU provider does not run in integers, read off the graph that it makes.

It fuses DequantizeLinear, operator and QuantizeLinear into an integer operator where it has one
(onnxruntime.ai/docs/performance/model-optimizations/quantization.html); what it leaves apart runs on floats. The graph
is that of the file as it is; `repquant.runtimes.onnxruntime` first gives files for TensorRT an equal form.
"""

import tempfile
from pathlib import Path

import onnx
from onnx import NodeProto

from repquant.targets.cpu_rules import not_loaded, saturating
from repquant.targets.finding import Finding, Rule
from repquant.targets.onnx_graph import DEQUANTIZE, QUANTIZE, OnnxGraph, integer_values, node_name

LOADS = Rule(
    name="loads",
    severity="refused",
    source="ONNX Runtime itself",
    remedy="see its message",
)
INTEGER_OPERATOR = Rule(
    name="integer-operator",
    severity="runs in float",
    source="ONNX Runtime's optimized graph",
    remedy="quantize all inputs and the output of the operator; before a ReLU to unsigned integers",
)
SATURATION = Rule(
    name="saturation",
    severity="inexact",
    source="onnxruntime.ai, Quantize ONNX Models: reduce_range on machines without VNNI",
    remedy="quantize the weights to 7 bits (`weight_bits=7`), or set session.x64quantprecision to 1 in the session",
)
RULES = (LOADS, INTEGER_OPERATOR, SATURATION)

_ERRORS_ONLY = 4
_INTEGER = ("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm", "QAttention")
# fmt: off
MOVING = frozenset({
    "Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Pad", "ReorderInput",
    "ReorderOutput", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", DEQUANTIZE,
    QUANTIZE,
})
# fmt: on
"""Operators that compute nothing: they move values, or change their type."""


def find(graph: OnnxGraph, *, has_exact_products: bool) -> list[Finding]:
    """Return what runs in float, and whether this CPU computes with the file's weights as they are.

    Args:
        graph: of the file.
        has_exact_products: whether the CPU adds int8 products in 32 bits.
    """
    try:
        optimized = _optimized(graph.model)
    except Exception as error:  # its exceptions share no base class of their own
        return [not_loaded(LOADS, error)]
    integers = integer_values(optimized)
    found = [
        Finding(rule=INTEGER_OPERATOR, node=node_name(node), detail=f"it runs as {node.op_type}, on floats")
        for node in optimized.graph.node
        if not _is_integer(node) and not any(name in integers for name in node.input)
    ]
    return found + saturating(SATURATION, graph.model, has_exact_products=has_exact_products)


def _is_integer(node: NodeProto) -> bool:
    return node.op_type.startswith("QLinear") or node.op_type in _INTEGER or node.op_type in MOVING


def _optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph that ONNX Runtime executes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(path)
