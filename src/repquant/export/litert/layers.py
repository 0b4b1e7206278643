"""Convolutions and linear layers: int8 with the activation in the same operator, or float.

A layer whose result somebody reads unrounded, as a network's output is, computes in float with the file's int8 weights,
which are dequantized when the file is loaded: no operator multiplies integers and gives floats.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from repquant.export.litert.clips import Clip, clipped, fused
from repquant.export.litert.flat_file import Quantization
from repquant.export.litert.scope import Scope, quantization
from repquant.export.litert.values import Value
from repquant.export.litert.windows import padded
from repquant.export.refusals import unwritable
from repquant.simulation.layers import QuantizedLayer

Weight = NDArray[Any]


def write_layer(scope: Scope, node: fx.Node, clip: Clip, grid: Quantization | None) -> Value:
    """Write a layer and the clip behind it, and return its value: on `grid`, or in float.

    Raises:
        InputError: a layer that has no form here.
    """
    layer: Any = scope.graph.get_submodule(str(node.target))
    source = scope.value(node.args[0])
    if isinstance(layer, QuantizedLayer):
        source = scope.writer.on_grid(source, quantization(layer.input))
    else:
        grid = None
    if grid is None:
        source = scope.writer.as_float(source)
    if isinstance(layer, nn.Linear):
        return _linear(scope, node, layer, source, clip, grid)
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return _convolution(scope, node, layer, source, clip, grid)
    raise unwritable(node, f"{type(layer).__name__.removeprefix('Quantized')} is not written to files for litert")


def _linear(scope: Scope, node: fx.Node, layer: Any, source: Value, clip: Clip, grid: Quantization | None) -> Value:
    parameters = _parameters(scope, node, layer, grid, lambda weight: weight, axis=0)
    activation, rest = fused(clip, grid)
    result = scope.result(node, grid=grid)
    is_per_channel = isinstance(layer, QuantizedLayer) and layer.integers.weight_grid.scale.numel() > 1
    keeps = len(result.sizes) > 2
    scope.writer.emit(
        "FULLY_CONNECTED",
        [scope.writer.plain(source), *parameters],
        result,
        "FullyConnectedOptions",
        (5 if keeps else 1) if grid is None else 12 if is_per_channel else 5 if keeps else 4,
        fusedActivationFunction=activation,
        keepNumDims=keeps,
    )
    return clipped(scope.writer, result, rest)


def _convolution(
    scope: Scope, node: fx.Node, layer: Any, source: Value, clip: Clip, grid: Quantization | None
) -> Value:
    assert layer.padding_mode == "zeros", "a captured network pads in other ways by operators of their own"
    kernel, stride, dilation = (_of_image(value) for value in (layer.kernel_size, layer.stride, layer.dilation))
    pads = _of_image(layer.padding, first=0)
    extents = tuple(gap * (size - 1) + 1 for size, gap in zip(kernel, dilation, strict=True))
    image, padding = padded(scope.writer, scope.image(source), extents, stride, pads)
    is_depthwise = layer.groups == layer.in_channels > 1
    layout, axis = (_depthwise, 3) if is_depthwise else (_channels_last, 0)
    inputs: list[Value | int] = [image, *_parameters(scope, node, layer, grid, layout, axis)]
    activation, rest = fused(clip, grid)
    result = scope.image_result(node, grid)
    settings = {
        "padding": padding,
        "strideH": stride[0],
        "strideW": stride[1],
        "dilationHFactor": dilation[0],
        "dilationWFactor": dilation[1],
        "fusedActivationFunction": activation,
    }
    if is_depthwise:
        settings["depthMultiplier"] = layer.out_channels // layer.in_channels
        version = 3 if grid is not None else 2
        scope.writer.emit("DEPTHWISE_CONV_2D", inputs, result, "DepthwiseConv2DOptions", version, **settings)
    else:
        version = 6 if layer.groups > 1 else 3 if grid is not None else 1
        scope.writer.emit("CONV_2D", inputs, result, "Conv2DOptions", version, **settings)
    return scope.from_image(node, clipped(scope.writer, result, rest))


def _parameters(
    scope: Scope,
    node: fx.Node,
    layer: Any,
    grid: Quantization | None,
    layout: Callable[[Weight], Weight],
    axis: int,
) -> tuple[int, int]:
    """Return the tensors of weight and bias, of zeros where the layer has none.

    Args:
        scope: of the network.
        node: that calls the layer.
        layer: quantized or not.
        grid: of the result; None for float parameters.
        layout: gives the weight the shape that the operator wants.
        axis: of the output channels in that shape.
    """
    file, name = scope.writer.file, str(node.target)
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if not isinstance(layer, QuantizedLayer):
        weight = file.constant(f"{name}.weight", layout(_array(layer.weight)))
        bias = np.zeros(channels, np.float32) if layer.bias is None else _array(layer.bias)
        return weight, file.constant(f"{name}.bias", bias)
    integers = layer.integers
    shaped = layout(_array(integers.weight))
    is_packed = grid is not None and _fits_int4(layer)
    scale = _array(integers.weight_grid.scale)
    weight = file.constant(f"{name}.weight", shaped, scale=scale, axis=axis, is_packed=is_packed)
    if grid is None:
        plain = file.tensor(f"{name}.weight_dequantized", shaped.shape, "float32")
        file.operator("DEQUANTIZE", [weight], plain, "DequantizeOptions", 5)
        float_bias = integers.float_bias()
        bias = np.zeros(channels, np.float32) if float_bias is None else _array(float_bias)
        return plain, file.constant(f"{name}.bias", bias)
    bias = np.zeros(channels, np.int32) if integers.bias is None else _array(integers.bias)
    return weight, file.constant(f"{name}.bias", bias, scale=_array(integers.bias_scale))


def _fits_int4(layer: Any) -> bool:
    """Whether weights are stored as int4: XNNPACK multiplies those of linear layers with an even number of inputs.

    It leaves convolutions and odd rows to LiteRT's own kernels, which round otherwise (results/litert.md).
    """
    is_even = isinstance(layer, nn.Linear) and layer.in_features % 2 == 0
    return is_even and bool(layer.integers.weight_grid.scheme.bits <= 4)


def _array(tensor: Tensor) -> Weight:
    return tensor.detach().cpu().numpy()


def _channels_last(weight: Weight) -> Weight:
    """Map (O, I, H, W) or (O, I, L) to (O, H, W, I)."""
    return _with_height(weight).transpose(0, 2, 3, 1)


def _depthwise(weight: Weight) -> Weight:
    """Map (O, 1, H, W) or (O, 1, L) to (1, H, W, O)."""
    return _with_height(weight).transpose(1, 2, 3, 0)


def _with_height(weight: Weight) -> Weight:
    return weight[:, :, None] if weight.ndim == 3 else weight


def _of_image(values: tuple[int, ...], first: int = 1) -> tuple[int, int]:
    """Return the geometry (H, W) of a layer; that of a 1-d one along W."""
    height, width = values if len(values) == 2 else (first, values[0])
    return height, width
