"""Quantized modules in the form that ONNX stores: integers behind DequantizeLinear.

Each module emits the ONNX operators itself, so that the graph holds the integers that the simulation computed with and
not a float copy that a runtime would have to round again. Where a target wants floats in the file, they are the values
of these integers and round to them.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repquant.graph.copies import copy_graph
from repquant.simulation.layers import (
    FakeQuantize,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedLayer,
    QuantizedLinear,
    QuantizedMatmul,
)
from repquant.targets.target import Target


def integer_graph(model: fx.GraphModule, target: Target) -> fx.GraphModule:
    """Return a copy of a quantized model whose modules emit QuantizeLinear and DequantizeLinear when exported.

    The copy is for `torch.onnx.export` alone: its operators are symbolic and can't be run. It maps float32 to float32;
    with scales in FP16 everything between that is not an integer is FP16.
    """
    memo: dict[int, Any] = {}
    beyond_rows = _linear_beyond_rows(model)
    for module in model.modules():
        if isinstance(module, FakeQuantize):
            memo[id(module)] = _QuantizeDequantize(module)
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            make: Any = _IntegerConvolution
            if isinstance(module, QuantizedLinear):
                make = _IntegerMatrix if id(module) in beyond_rows else _IntegerLinear
            memo[id(module)] = make(module, memo[id(module.input)], target)
        elif isinstance(module, QuantizedMatmul):
            memo[id(module)] = _IntegerMatmul(module)
    graph = copy_graph(model, memo)
    if target.weight.scale_type == "float16":
        _compute_in_half(graph.half())
    return graph


def _compute_in_half(graph: fx.GraphModule) -> None:
    """Convert the inputs of a network to float16, in place, and its outputs back."""
    for node in list(graph.graph.nodes):
        if node.op == "placeholder":
            with graph.graph.inserting_after(node):
                half = graph.graph.call_method("half", (node,))
            node.replace_all_uses_with(half, delete_user_cb=lambda user, half=half: user is not half)
        elif node.op == "output":
            with graph.graph.inserting_before(node):
                node.args = fx.map_arg(node.args, lambda value: graph.graph.call_method("float", (value,)))
    graph.recompile()


def _linear_beyond_rows(model: nn.Module) -> set[int]:
    """Return the ids of linear layers of a captured network that read more than rows (N, I)."""
    if not isinstance(model, fx.GraphModule):
        return set()
    return {
        id(model.get_submodule(str(node.target)))
        for node in model.graph.nodes
        if node.op == "call_module" and node.meta["val"].ndim > 2
    }


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
        self.channel_axis = integers.weight_grid.scheme.channel_axis
        self.register_buffer("weight", integers.weight if target.weights == "int8" else integers.float_weight())
        self.register_buffer("weight_scale", integers.weight_grid.scale)
        self.register_buffer("weight_zero_point", integers.weight_grid.zero_point.to(torch.int8))
        self.register_buffer("bias", integers.float_bias() if target.float_biases else integers.bias)
        self.register_buffer("bias_scale", integers.bias_scale)
        self.register_buffer("bias_zero_point", torch.zeros_like(integers.bias_scale, dtype=torch.int32))

    def float_parameters(self) -> tuple[Tensor, Tensor | None]:
        grid = (self.weight_scale, self.weight_zero_point)
        weight, bias = self.weight, self.bias
        attributes = {} if self.channel_axis is None else {"axis": self.channel_axis}
        if self.target.weights == "float":
            weight = _onnx("QuantizeLinear", weight, *grid, dtype=torch.int8, attributes=attributes)
        weight = _dequantize(weight, *grid, attributes)
        if bias is not None and not self.target.float_biases:
            attributes = {"axis": 0} if self.bias_scale.dim() else {}
            bias = _dequantize(bias, self.bias_scale, self.bias_zero_point, attributes)
        return weight, bias


class _IntegerConvolution(_IntegerLayer):
    def __init__(self, conv: Any, quantize_input: nn.Module, target: Target) -> None:
        super().__init__(conv, quantize_input, target)
        assert conv.padding_mode == "zeros", "a captured network pads in other ways by operators of their own"
        self.geometry = {name: getattr(conv, name) for name in ("stride", "padding", "dilation", "groups")}
        if isinstance(conv, nn.ConvTranspose1d | nn.ConvTranspose2d):
            self.geometry["output_padding"] = conv.output_padding
        self.convolve = _CONVOLUTIONS[type(conv)]

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.float_parameters()
        y: Tensor = self.convolve(self.input(x), weight, bias, **self.geometry)
        return y


class _IntegerLinear(_IntegerLayer):
    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.float_parameters()
        return F.linear(self.input(x), weight, bias)


class _IntegerMatrix(_IntegerLayer):
    """A linear layer on (..., I): runtimes want its weight as (I, O), and no other operator behind DequantizeLinear."""

    def __init__(self, linear: QuantizedLayer, quantize_input: nn.Module, target: Target) -> None:
        super().__init__(linear, quantize_input, target)
        self.weight = self.weight.T.contiguous()
        self.channel_axis = None if self.channel_axis is None else 1

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.float_parameters()
        y: Tensor = self.input(x) @ weight
        return y if bias is None else y + bias


class _IntegerMatmul(nn.Module):
    def __init__(self, matmul: QuantizedMatmul) -> None:
        super().__init__()
        self.left, self.right = _QuantizeDequantize(matmul.left), _QuantizeDequantize(matmul.right)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        product: Tensor = self.left(left) @ self.right(right)
        return product


_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    QuantizedConv1d: F.conv1d,
    QuantizedConv2d: F.conv2d,
    QuantizedConvTranspose1d: F.conv_transpose1d,
    QuantizedConvTranspose2d: F.conv_transpose2d,
}


def _dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, attributes: dict[str, Any]) -> Tensor:
    return _onnx("DequantizeLinear", q, scale, zero_point, dtype=scale.dtype, attributes=attributes)


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
