"""What of a .tflite file LiteRT refuses, computes with other integers than the file says, or does not run in integers.

The grids that operators ask for are those of its specification (ai.google.dev/edge/litert/models/quantization_spec);
which operators XNNPACK takes is asked of the interpreter, on this CPU.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from repquant.targets.cpu_rules import not_loaded
from repquant.targets.finding import Finding, Rule
from repquant.targets.litert_file import LitertGraph, Operator, Tensor

_SPECIFICATION = "ai.google.dev/edge/litert/models/quantization_spec"
LOADS = Rule(
    name="loads",
    severity="refused",
    source="LiteRT itself",
    remedy="see its message",
)
WEIGHT_GRID = Rule(
    name="weight-grid",
    severity="refused",
    source=_SPECIFICATION,
    remedy="quantize weights symmetrically, with zero point 0 and scales along the output channels",
)
BIAS_GRID = Rule(
    name="bias-grid",
    severity="inexact",
    source=_SPECIFICATION,
    remedy="store the bias as int32 in steps of input scale x weight scale",
)
SHARED_GRID = Rule(
    name="shared-grid",
    severity="inexact",
    source=_SPECIFICATION,
    remedy="give what the operator reads and what it writes one scale and zero point",
)
FIXED_GRID = Rule(
    name="fixed-grid",
    severity="refused",
    source=_SPECIFICATION,
    remedy="quantize the output of the operator with the scale and zero point that it asks for",
)
INTEGER_OPERATOR = Rule(
    name="integer-operator",
    severity="runs in float",
    source="types of the tensors",
    remedy="quantize all inputs and the output of the operator, or leave it: what is around it runs in integers",
)
NOT_DELEGATED = Rule(
    name="not-delegated",
    severity="slower",
    source="LiteRT's interpreter with XNNPACK",
    remedy="nothing has to be done: LiteRT's own kernel runs it",
)
RULES = (LOADS, WEIGHT_GRID, BIAS_GRID, SHARED_GRID, FIXED_GRID, INTEGER_OPERATOR, NOT_DELEGATED)

_AXES = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0}
"""Layers, and the axis of their weights that scales lie along."""

_INPUT_OF = {"TRANSPOSE_CONV": 2}
_BIAS_OF = {"TRANSPOSE_CONV": 3}
_SHARING = frozenset(
    {
        "AVERAGE_POOL_2D",
        "BATCH_TO_SPACE_ND",
        "CONCATENATION",
        "DEPTH_TO_SPACE",
        "GATHER",
        "MAXIMUM",
        "MAX_POOL_2D",
        "MINIMUM",
        "PAD",
        "PADV2",
        "REDUCE_MAX",
        "REDUCE_MIN",
        "RESHAPE",
        "RESIZE_BILINEAR",
        "RESIZE_NEAREST_NEIGHBOR",
        "SLICE",
        "SPACE_TO_BATCH_ND",
        "SPACE_TO_DEPTH",
        "SPLIT",
        "SPLIT_V",
        "STRIDED_SLICE",
        "TILE",
        "TRANSPOSE",
    }
)
_FIXED: Mapping[str, tuple[float, int]] = {
    "LOGISTIC": (1 / 256, -128),
    "SOFTMAX": (1 / 256, -128),
    "TANH": (1 / 128, 0),
    "L2_NORMALIZATION": (1 / 128, 0),
}
_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")
_INTEGERS = ("int8", "uint8", "INT16", "int4")


def find(path: Path, graph: LitertGraph) -> list[Finding]:
    """Return what does not meet a rule.

    Args:
        path: of the file.
        graph: that it holds.
    """
    found = [finding for operator in graph.operators for finding in _of_operator(graph, operator)]
    try:
        outside = not_delegated(open_interpreter(path), graph)
    except (RuntimeError, ValueError) as error:
        return [not_loaded(LOADS, error), *found]
    return found + [
        Finding(rule=NOT_DELEGATED, node=_name(graph, operator), detail=f"XNNPACK does not take this {operator.kind}")
        for operator in outside
    ]


def open_interpreter(path: Path, threads: int | None = None) -> Any:
    """Return LiteRT's interpreter for a file, with its memory allocated.

    Raises:
        ValueError, RuntimeError: LiteRT does not take it.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    return interpreter


def not_delegated(interpreter: Any, graph: LitertGraph) -> list[Operator]:
    """Return the operators that the interpreter runs with LiteRT's own kernels.

    It tells of all operators, those that XNNPACK took included. What XNNPACK's parts do not write, from what they and
    the caller read on backwards, somebody else has to.
    """
    parts = [entry for entry in interpreter._get_ops_details() if entry["op_name"] == "DELEGATE"]
    written = {int(place) for part in parts for place in part["outputs"]}
    producers = {place: operator for operator in graph.operators for place in operator.outputs}
    pending = [*graph.outputs, *(int(place) for part in parts for place in part["inputs"])]
    outside: list[Operator] = []
    while pending:
        place = pending.pop()
        operator = producers.get(place)
        if place not in written and operator is not None and operator not in outside:
            outside.append(operator)
            pending.extend(operator.inputs)
    return [operator for operator in graph.operators if operator in outside]


def _of_operator(graph: LitertGraph, operator: Operator) -> Iterator[Finding]:
    name, reads, writes = _name(graph, operator), graph.reads(operator), graph.writes(operator)
    computed = [tensor for tensor in reads if tensor.constant is None]
    if operator.kind in _CONVERSIONS or not computed:
        return
    if all(tensor.dtype == "float32" for tensor in (*computed, *writes)):
        yield Finding(rule=INTEGER_OPERATOR, node=name, detail=f"it runs as {operator.kind}, on floats")
        return
    if operator.kind in _AXES:
        yield from _of_layer(graph, operator)
    grids = [tensor for tensor in (*reads, *writes) if tensor.scale is not None and tensor.dtype in _INTEGERS]
    if operator.kind in _SHARING and any(not _same(grids[0], other) for other in grids[1:]):
        yield Finding(rule=SHARED_GRID, node=name, detail=f"{operator.kind} reads and writes {_grids(grids)}")
    if operator.kind in _FIXED and writes[0].scale is not None and writes[0].zero_point is not None:
        scale, zero_point = _FIXED[operator.kind]
        if not (np.isclose(writes[0].scale, scale).all() and (writes[0].zero_point == zero_point).all()):
            detail = f"{operator.kind} writes {_grids(writes)}, not 1/{1 / scale:.0f} and {zero_point}"
            yield Finding(rule=FIXED_GRID, node=name, detail=detail)


def _of_layer(graph: LitertGraph, operator: Operator) -> Iterator[Finding]:
    name = _name(graph, operator)
    source = graph.tensors[operator.inputs[_INPUT_OF.get(operator.kind, 0)]]
    weight = graph.tensors[operator.inputs[1]]
    if weight.scale is None or weight.zero_point is None or source.scale is None:
        return
    if weight.dtype == "int8" and weight.zero_point.any():
        yield Finding(rule=WEIGHT_GRID, node=name, detail="a zero point of its weights is not 0")
    axis = _AXES[operator.kind]
    if weight.scale.size > 1 and (weight.axis != axis or weight.scale.size != weight.shape[axis]):
        detail = f"it has {weight.scale.size} scales on axis {weight.axis}; {operator.kind} needs them on axis {axis}"
        yield Finding(rule=WEIGHT_GRID, node=name, detail=detail)
        return
    place = _BIAS_OF.get(operator.kind, 2)
    if len(operator.inputs) <= place or operator.inputs[place] < 0:
        return
    bias = graph.tensors[operator.inputs[place]]
    if bias.scale is None or not np.allclose(bias.scale, source.scale * weight.scale, rtol=1e-5, atol=0):
        detail = "the scale of its bias is not input scale x weight scale, which LiteRT takes it for"
        yield Finding(rule=BIAS_GRID, node=name, detail=detail)


def _name(graph: LitertGraph, operator: Operator) -> str:
    return graph.tensors[operator.outputs[0]].name if operator.outputs else operator.kind


def _same(one: Tensor, other: Tensor) -> bool:
    return np.array_equal(one.scale, other.scale) and np.array_equal(one.zero_point, other.zero_point)  # type: ignore[arg-type]


def _grids(tensors: list[Tensor]) -> str:
    """Return the scales and zero points of tensors for a person."""
    told = [
        f"{tensor.scale[0]:.4g} and {tensor.zero_point[0]}"
        for tensor in tensors
        if tensor.scale is not None and tensor.zero_point is not None
    ]
    return ", ".join(dict.fromkeys(told))
