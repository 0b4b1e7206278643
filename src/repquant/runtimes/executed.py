"""What an engine made of a file: its operators, and which of them compute in integers."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from repquant.targets.onnx_graph import DEQUANTIZE, QUANTIZE, integer_values

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
    integers = integer_values(model)
    for node in model.graph.node:
        if node.op_type not in (QUANTIZE, DEQUANTIZE):
            is_integer = any(name in integers for name in node.input)
            yield Executed(kind=node.op_type, name=node.name, is_integer=is_integer)
