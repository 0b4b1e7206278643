"""ONNX Runtime's way to multiply 8-bit weights exactly on x86 without VNNI.

There it multiplies uint8 activations with int8 weights in `vpmaddubsw`, whose 16-bit sums saturate. Its session entry
`session.x64quantprecision` makes it turn such weights into uint8, whose products it adds in 32 bits: slower and exact
(onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
"""

from collections import Counter

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

PRECISE = ("session.x64quantprecision", "1")
_LARGEST_SAFE = 64  # 2 x 255 x 64 fits 16 bits


def may_saturate(model: onnx.ModelProto) -> bool:
    """Return whether a model has int8 weights of which two products can be too large for a signed 16-bit sum.

    Float weights that the runtime has yet to quantize count as such.
    """
    quantized = {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT8:
            if (np.abs(numpy_helper.to_array(tensor).astype(np.int16)) > _LARGEST_SAFE).any():
                return True
        elif tensor.name in quantized:
            return True
    return False


def own_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which no two quantizing nodes read the same constant.

    ONNX Runtime replaces the constants of one node after the other, and fails at the second one that has the same.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for index, name in enumerate(node.input):
            if name not in constants:
                continue
            if readers[name]:
                own = TensorProto()
                own.CopyFrom(constants[name])
                own.name = node.input[index] = f"{name}_{readers[name]}_own"
                model.graph.initializer.append(own)
            readers[name] += 1
    return model
