"""What the CPU targets have in common: a file may not load, and 8-bit products may saturate."""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from repquant.targets.finding import Finding, Rule
from repquant.targets.onnx_graph import DEQUANTIZE, QUANTIZE

_LARGEST_SAFE = 64  # 2 x 255 x 64 fits signed 16 bits


def not_loaded(rule: Rule, error: Exception) -> Finding:
    """Return that an engine refuses a file, with the reason that it gave."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    told = [line.strip() for line in lines if "src/" not in line]  # without where in its source it gave up
    return Finding(rule=rule, node="", detail=f"it is not loaded: {' '.join(told or lines[-1:])}")


def saturating(rule: Rule, model: onnx.ModelProto, *, has_exact_products: bool) -> list[Finding]:
    """Return that a CPU computes something else than the file's integers, where it does."""
    if has_exact_products or not may_saturate(model):
        return []
    return [Finding(rule=rule, node="", detail="this CPU has no VNNI, where products of 8-bit weights saturate")]


def may_saturate(model: onnx.ModelProto) -> bool:
    """Return whether a model has int8 weights of which two products can be too large for a signed 16-bit sum.

    Float weights that the runtime has yet to quantize count as such.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        data = constants.get(node.input[0]) if node.op_type in (QUANTIZE, DEQUANTIZE) else None
        if data is None:
            continue
        if node.op_type == QUANTIZE:
            return True
        is_int8 = data.data_type == TensorProto.INT8
        if is_int8 and (np.abs(numpy_helper.to_array(data).astype(np.int16)) > _LARGEST_SAFE).any():
            return True
    return False
