"""Small graphs, written down node by node."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from repquant.targets.onnx_graph import graph_of


class Sketch:
    """A graph that is built from the front: each call adds a node and returns the name of what it gives."""

    def __init__(self, channels=4, shape=("batch", 4, 8, 8), opset=21):
        self.channels, self.shape, self.opset = channels, shape, opset
        self.nodes, self.constants, self.outputs = [], {}, []
        self.image = "images"

    def constant(self, value, name):
        self.constants[name] = value if isinstance(value, TensorProto) else numpy_helper.from_array(value, name)
        return name

    def node(self, kind, *inputs, name="", **attributes):
        name = name or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def quantized(self, x, name="grid", scale=0.1, zero=0, kind=np.int8):
        grid = (self.constant(np.float32(scale), f"{name}_scale"), self.constant(kind(zero), f"{name}_zero"))
        q = self.node("QuantizeLinear", x, *grid, name=f"{name}/Q")
        return self.node("DequantizeLinear", q, *grid, name=f"{name}/DQ")

    def weight(self, name="conv", shape=None, axis=0, count=None, largest=100):
        shape = shape or (self.channels, self.channels, 1, 1)
        values = np.full(shape, largest, np.int8)
        scales = np.full(count or shape[axis], 0.01, np.float32)
        q, s = self.constant(values, f"{name}.w"), self.constant(scales, f"{name}.s")
        zero = self.constant(np.zeros_like(scales, np.int8), f"{name}.z")
        return self.node("DequantizeLinear", q, s, zero, name=f"{name}/W", axis=axis)

    def conv(self, x, name="conv", weight=None):
        return self.node("Conv", x, weight or self.weight(name), name=name)

    def block(self, x, name="conv"):
        """A convolution in integers with its ReLU."""
        return self.node("Relu", self.conv(self.quantized(x, f"{name}.in"), name), name=f"{name}.relu")

    def give(self, *names):
        self.outputs += names
        return self

    def model(self):
        graph = helper.make_graph(
            self.nodes,
            "sketch",
            [helper.make_tensor_value_info(self.image, TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.outputs],
            list(self.constants.values()),
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def graph(self):
        return graph_of(self.model())
