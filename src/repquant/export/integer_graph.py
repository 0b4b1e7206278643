"""Quantized modules in the form that ONNX stores: int8 weights and int32 biases behind DequantizeLinear.

Each module emits the ONNX operators itself, so that the graph holds the integers that the simulation computed with and
not a float copy that a runtime would have to round again.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repquant.simulation.layers import FakeQuantize, QuantizedConv2d, QuantizedLayer, QuantizedLinear


def integer_graph(model: nn.Module) -> nn.Module:
    """Return a copy of a quantized model whose modules emit QuantizeLinear and DequantizeLinear when exported.

    The copy is for `torch.onnx.export` alone: its operators are symbolic and can't be run.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, FakeQuantize):
            memo[id(module)] = _QuantizeDequantize(module)
    for module in model.modules():
        if isinstance(module, QuantizedConv2d):
            memo[id(module)] = _IntegerConv2d(module, memo[id(module.input)])
        elif isinstance(module, QuantizedLinear):
            memo[id(module)] = _IntegerLinear(module, memo[id(module.input)])
    return copy.deepcopy(model, memo)


class _QuantizeDequantize(nn.Module):
    scale: Tensor
    zero_point: Tensor

    def __init__(self, fake: FakeQuantize) -> None:
        super().__init__()
        assert fake.scheme.bits == 8, "ONNX quantizes activations to 8 bits"
        self.register_buffer("scale", torch.tensor(fake.scale))
        dtype = torch.int8 if fake.scheme.signed else torch.uint8
        self.register_buffer("zero_point", torch.tensor(fake.zero_point, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        grid = (self.scale, self.zero_point)
        q = _onnx("QuantizeLinear", x, *grid, dtype=self.zero_point.dtype)
        return _onnx("DequantizeLinear", q, *grid, dtype=torch.float32)


class _IntegerLayer(nn.Module):
    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    bias: Tensor | None
    bias_scale: Tensor
    bias_zero_point: Tensor

    def __init__(self, layer: QuantizedLayer, quantize_input: nn.Module) -> None:
        super().__init__()
        self.input = quantize_input
        integers = layer.integers
        self.register_buffer("weight", integers.weight)
        self.register_buffer("weight_scale", integers.weight_grid.scale)
        self.register_buffer("weight_zero_point", integers.weight_grid.zero_point.to(torch.int8))
        self.register_buffer("bias", integers.bias)
        self.register_buffer("bias_scale", integers.bias_scale)
        self.register_buffer("bias_zero_point", torch.zeros_like(integers.bias_scale, dtype=torch.int32))

    def float_parameters(self) -> tuple[Tensor, Tensor | None]:
        weight = _dequantize(self.weight, self.weight_scale, self.weight_zero_point)
        bias = self.bias
        return weight, None if bias is None else _dequantize(bias, self.bias_scale, self.bias_zero_point)


class _IntegerConv2d(_IntegerLayer):
    def __init__(self, conv: QuantizedConv2d, quantize_input: nn.Module) -> None:
        super().__init__(conv, quantize_input)
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.float_parameters()
        return F.conv2d(self.input(x), weight, bias, self.stride, self.padding, self.dilation, self.groups)


class _IntegerLinear(_IntegerLayer):
    def __init__(self, linear: QuantizedLinear, quantize_input: nn.Module) -> None:
        super().__init__(linear, quantize_input)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.float_parameters()
        return F.linear(self.input(x), weight, bias)


def _dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    attributes = {"axis": 0} if scale.dim() else {}
    return _onnx("DequantizeLinear", q, scale, zero_point, dtype=torch.float32, attributes=attributes)


def _onnx(
    operator: str,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    dtype: torch.dtype,
    attributes: dict[str, Any] | None = None,
) -> Tensor:
    inputs = (x, scale, zero_point)
    return torch.onnx.ops.symbolic(operator, inputs, attributes or {}, dtype=dtype, shape=x.shape)
