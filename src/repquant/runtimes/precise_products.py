"""ONNX Runtime's way to multiply 8-bit weights exactly on x86 without VNNI.

There it multiplies uint8 activations with int8 weights in `vpmaddubsw`, whose 16-bit sums saturate. Its session entry
`session.x64quantprecision` makes it turn such weights into uint8, whose products it adds in 32 bits: slower and exact
(onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
"""

from collections import Counter

import onnx
from onnx import TensorProto

PRECISE = ("session.x64quantprecision", "1")


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
