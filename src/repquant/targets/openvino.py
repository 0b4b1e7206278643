"""Which operators of a file OpenVINO's CPU plugin does not run in integers, read off the model that it executes.

The plugin tells of each operator what it was fused from and in which precision it runs
(docs.openvino.ai, "Low Precision Transformations", and `CompiledModel.get_runtime_model`).
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import onnx

from repquant.targets.cpu_rules import not_loaded, saturating
from repquant.targets.finding import Finding, Rule
from repquant.targets.onnx_graph import OnnxGraph

LOADS = Rule(
    name="loads",
    severity="refused",
    source="OpenVINO itself",
    remedy="see its message",
)
INTEGER_OPERATOR = Rule(
    name="integer-operator",
    severity="runs in float",
    source="OpenVINO's runtime model",
    remedy="quantize all inputs of the operator",
)
SATURATION = Rule(
    name="saturation",
    severity="inexact",
    source="docs.openvino.ai, Saturation (overflow) Issue Workaround",
    remedy="quantize the weights to 7 bits (`weight_bits=7`), or run it on a CPU with VNNI",
)
RULES = (LOADS, INTEGER_OPERATOR, SATURATION)

_INTEGERS = ("i8", "u8", "i4", "u4", "u1")
# fmt: off
MOVING = frozenset({
    "Broadcast", "Concatenation", "Const", "Convert", "FakeQuantize", "Gather", "Input", "Output", "Pad", "Reorder",
    "Reshape", "ShapeOf", "Split", "StridedSlice", "Tile", "Transpose",
})
# fmt: on
"""Operators that compute nothing: they move values, or change their type."""


def compile_for_cpu(model: onnx.ModelProto, config: Mapping[str, Any]) -> Any:
    """Return OpenVINO's compiled model for its CPU plugin.

    Raises:
        Exception: OpenVINO's own, for a model that it does not take.
    """
    core = _core()
    content: bytes = model.SerializeToString()
    return core.compile_model(core.read_model(content), "CPU", dict(config))


@cache
def _core() -> Any:
    """The one core of this process.

    Where a CPU has AVX-512 the plugin of every core changes the stack that signals are handled on, and puts back what
    it found when it ends. Of two cores the one that began first may end first: then signals are handled on memory that
    is gone, and the next one ends the process with a segmentation fault (seen with OpenVINO 2026.4 at a SIGCHLD).
    """
    import openvino

    return openvino.Core()


def find(graph: OnnxGraph, *, has_exact_products: bool) -> list[Finding]:
    """Return what runs in float, and whether this CPU computes with the file's weights as they are.

    Args:
        graph: of the file.
        has_exact_products: whether the CPU adds int8 products in 32 bits.
    """
    try:
        operators = _executed(graph.model)
    except Exception as error:  # of the ONNX parser, too
        return [not_loaded(LOADS, error)]
    found = [
        Finding(rule=INTEGER_OPERATOR, node=name, detail=f"it runs as {kind} in {precision}")
        for name, kind, precision in operators
        if kind not in MOVING and precision not in _INTEGERS
    ]
    return found + saturating(SATURATION, graph.model, has_exact_products=has_exact_products)


def _executed(model: onnx.ModelProto) -> list[tuple[str, str, str]]:
    """Return name, type and precision of each operator that OpenVINO executes."""
    # float32 for what is not quantized, as `repquant.runtimes.openvino` has it.
    compiled = compile_for_cpu(model, {"INFERENCE_PRECISION_HINT": "f32"})

    def tell(operator: Any, key: str) -> str:
        information = operator.get_rt_info()
        return str(information[key].value) if key in information else ""

    return [
        (operator.get_friendly_name(), tell(operator, "layerType"), tell(operator, "runtimePrecision"))
        for operator in compiled.get_runtime_model().get_ordered_ops()
    ]
