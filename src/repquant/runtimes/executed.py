"""What an engine made of a file: its operators, and which of them compute in integers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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
        kernel: the engine's name for what it computes with, which says the instruction set; "" where it tells none.
    """

    kind: str
    name: str
    is_integer: bool
    kernel: str = ""

    @property
    def is_product(self) -> bool:
        """Whether it is a convolution, a linear layer or a matrix product."""
        return any(self.kind.endswith(kind) for kind in PRODUCTS) or self.kind in ("QGemm", "FusedConv")


@runtime_checkable
class NamesKernels(Protocol):
    """An engine that names the kernels that it multiplies integers with."""

    def integer_kernels(self) -> list[str]:
        """Return the kernels, each once."""
        ...


def kernels_of_products(operators: Iterable[Executed]) -> list[str]:
    """Return the kernels that products of integers run in, each once."""
    return sorted({each.kernel for each in operators if each.is_product and each.is_integer and each.kernel})


def executed_nodes(model: onnx.ModelProto) -> Iterator[Executed]:
    """Yield the operators of a graph that ONNX Runtime has optimized, without its constants and Q/DQ pairs."""
    integers = integer_values(model)
    for node in model.graph.node:
        if node.op_type not in (QUANTIZE, DEQUANTIZE):
            is_integer = any(name in integers for name in node.input)
            yield Executed(kind=node.op_type, name=node.name, is_integer=is_integer)
