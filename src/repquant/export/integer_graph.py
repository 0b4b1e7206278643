"""Quantized modules in the form that ONNX stores: integers behind DequantizeLinear.

Each module emits the ONNX operators itself, so that the graph holds the integers that the simulation computed with and
not a float copy that a runtime would have to round again. Where a target wants floats in the file, they are the values
of these integers and round to them.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repquant.quant.fake_quant import FakeQuantize, QuantizedConv2d, QuantizedLayer, QuantizedLinear
from repquant.quant.target import Target


def integer_graph(model: nn.Module, target: Target) -> nn.Module:
    """Return a copy of a quantized model whose modules emit QuantizeLinear and DequantizeLinear when exported.

    The copy is for `torch.onnx.export` alone: its operators are symbolic and can't be run. It maps float32 to float32;
    with scales in FP16 everything between that is not an integer is FP16.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, FakeQuantize):
            memo[id(module)] = _QuantizeDequantize(module)
    for module in model.modules():
        if isinstance(module, QuantizedConv2d):
            memo[id(module)] = _IntegerConv2d(module, memo[id(module.input)], target)
        elif isinstance(module, QuantizedLinear):
            memo[id(module)] = _IntegerLinear(module, memo[id(module.input)], target)
    graph = copy.deepcopy(model, memo)
    if target.weight.scale_type == "float16":
        graph.half()
        graph.register_forward_pre_hook(lambda _module, inputs: tuple(x.half() for x in inputs))
        graph.register_forward_hook(lambda _module, _inputs, output: output.float())
    return graph


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
        return _onnx("DequantizeLinear", q, *grid, dtype=self.scale.dtype)


class _IntegerLayer(nn.Module):
    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    bias: Tensor | None
    bias_scale: Tensor
    bias_zero_point: Tensor

    def __init__(self, layer: QuantizedLayer, quantize_input: nn.Module, target: Target) -> None:
        super().__init__()
        self.input = quantize_input
        self.target = target
        integers = layer.integers
        self.register_buffer("weight", integers.weight if target.weights == "int8" else integers.float_weight())
        self.register_buffer("weight_scale", integers.weight_grid.scale)
        self.register_buffer("weight_zero_point", integers.weight_grid.zero_point.to(torch.int8))
        self.register_buffer("bias", integers.float_bias() if target.float_biases else integers.bias)
        self.register_buffer("bias_scale", integers.bias_scale)
        self.register_buffer("bias_zero_point", torch.zeros_like(integers.bias_scale, dtype=torch.int32))

    def float_parameters(self) -> tuple[Tensor, Tensor | None]:
        grid = (self.weight_scale, self.weight_zero_point)
        weight, bias = self.weight, self.bias
        if self.target.weights == "float":
            weight = _onnx("QuantizeLinear", weight, *grid, dtype=torch.int8, attributes=_axis(self.weight_scale))
        weight = _dequantize(weight, *grid)
        if bias is not None and not self.target.float_biases:
            bias = _dequantize(bias, self.bias_scale, self.bias_zero_point)
        return weight, bias


class _IntegerConv2d(_IntegerLayer):
    def __init__(self, conv: QuantizedConv2d, quantize_input: nn.Module, target: Target) -> None:
        super().__init__(conv, quantize_input, target)
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.float_parameters()
        return F.conv2d(self.input(x), weight, bias, self.stride, self.padding, self.dilation, self.groups)


class _IntegerLinear(_IntegerLayer):
    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.float_parameters()
        return F.linear(self.input(x), weight, bias)


def _dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return _onnx("DequantizeLinear", q, scale, zero_point, dtype=scale.dtype, attributes=_axis(scale))


def _axis(scale: Tensor) -> dict[str, Any]:
    return {"axis": 0} if scale.dim() else {}


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
