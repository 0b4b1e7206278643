"""What an engine made of a file: its operators, and which of them compute in integers."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

PRODUCTS = (
    "Conv",
    "ConvTranspose",
    "Deconvolution",
    "Convolution",
    "ConvolutionDepthWise",
    "FullyConnected",
    "Gemm",
    "InnerProduct",
    "MatMul",
)
"""Endings of the engines' names for layers and matrix products, without what they put in front or behind."""


@dataclass(frozen=True, kw_only=True)
class Executed:
    """An operator as an engine runs it.

    Attributes:
        kind: the engine's name for it.
        name: of the node, as far as the engine keeps it.
        is_integer: it reads integers of 8 bits and multiplies, moves or looks them up as such.
    """

    kind: str
    name: str
    is_integer: bool

    @property
    def is_product(self) -> bool:
        """Whether it is a convolution, a linear layer or a matrix product."""
        return any(self.kind.endswith(kind) for kind in PRODUCTS) or self.kind in ("QGemm", "FusedConv")


def executed_nodes(model: onnx.ModelProto) -> Iterator[Executed]:
    """Yield the operators of a graph that ONNX Runtime has optimized, without its constants and Q/DQ pairs."""
    types = onnx.TensorProto
    integers = {tensor.name for tensor in model.graph.initializer if tensor.data_type in (types.INT8, types.UINT8)} | {
        info.name for info in model.graph.input if info.type.tensor_type.elem_type in (types.INT8, types.UINT8)
    }
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            if node.op_type == "QuantizeLinear":
                integers.update(node.output)
            continue
        is_integer = any(name in integers for name in node.input)
        if is_integer and not node.op_type.startswith("MatMulInteger"):
            integers.update(node.output)
        yield Executed(kind=node.op_type, name=node.name, is_integer=is_integer)
