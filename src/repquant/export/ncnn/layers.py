"""Convolutions and linear layers: int8 products, rescaled and rounded in the same layer where they end on a grid.

ncnn computes sum x scale + bias in float32, and takes the scale as a reciprocal. It is given what the simulation
multiplies with: a layer that ends on a grid computes in its steps, so that one multiplication stands between the sum
and the rounding, and its scale of the output is 1.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from repquant.export.ncnn.clips import Limits, as_activation
from repquant.export.ncnn.file_pair import Settings, float_weights, floats, int8_weights
from repquant.export.ncnn.values import Scope, Value, sizes_of
from repquant.export.refusals import unwritable
from repquant.simulation.layers import QuantizedLayer

_SCALES, _SCALES_AND_OUTPUT = 1, 101  # values of the setting that says which scales the numbers hold


@dataclass(frozen=True, kw_only=True)
class _Parameters:
    """What a layer multiplies with.

    Attributes:
        weight: (O, I/groups, ...) int8 or float32.
        bias: (O,) float32 in units of the result, or None.
        factor: (O,) float32, what an integer of the sum stands for in units of the result; None for float weights.
    """

    weight: NDArray[Any]
    bias: NDArray[np.float32] | None
    factor: NDArray[np.float32] | None

    def part(self, channels: slice) -> "_Parameters":
        """Return those of some output channels."""
        return _Parameters(
            weight=self.weight[channels],
            bias=None if self.bias is None else self.bias[channels],
            factor=None if self.factor is None else self.factor[channels],
        )

    def numbers(self, *, ends: bool) -> list[bytes]:
        """Return them as the file holds them: weights, biases, and the scales of weights, input and output."""
        weights = float_weights(self.weight) if self.factor is None else int8_weights(self.weight)
        biases = [] if self.bias is None else [floats(self.bias)]
        one = floats(np.ones(1))
        scales = [] if self.factor is None else [floats(1 / self.factor), one, *([one] if ends else [])]
        return [weights, *biases, *scales]


def write_layer(scope: Scope, node: fx.Node, limits: Limits) -> Value:
    """Write a layer and the clip behind it, and return its value: int8 where it ends on a grid, else float.

    Raises:
        InputError: a layer that has no form here.
    """
    layer: Any = scope.graph.get_submodule(str(node.target))
    if isinstance(layer, nn.Linear) and len(sizes_of(node)) == 1:
        return _linear(scope, node, layer, limits)
    if isinstance(layer, nn.Conv2d):
        return _convolution(scope, node, layer, limits)
    kind = type(layer).__name__.removeprefix("Quantized")
    why = " on more than rows" if isinstance(layer, nn.Linear) else ""
    raise unwritable(node, f"{kind}{why} is not written to files for ncnn")


def _linear(scope: Scope, node: fx.Node, layer: Any, limits: Limits) -> Value:
    parameters = _parameters(layer)
    settings = {0: layer.out_features, 1: int(layer.bias is not None), 2: parameters.weight.size}
    settings |= {8: _SCALES} if isinstance(layer, QuantizedLayer) else {}
    settings |= as_activation(_in_unit(layer, limits))
    name, numbers = str(node.target), parameters.numbers(ends=False)
    value = scope.writer.emit("InnerProduct", name, [_read(scope, node, layer)], sizes_of(node), settings, numbers)
    return value if _end(layer) is None else scope.writer.rounded(value, 1.0, layer.end)


def _convolution(scope: Scope, node: fx.Node, layer: Any, limits: Limits) -> Value:
    assert layer.padding_mode == "zeros", "a captured network pads in other ways by operators of their own"
    is_integer, groups, step = isinstance(layer, QuantizedLayer), layer.groups, _end(layer)
    if is_integer and groups == layer.in_channels > 1 and layer.out_channels > groups:
        raise unwritable(
            node, "ncnn has one scale for all channels that come of one in an int8 layer; keep it in float"
        )
    parameters, settings = _parameters(layer), _geometry(layer) | as_activation(_in_unit(layer, limits))
    if is_integer:
        settings |= {8: _SCALES if step is None else _SCALES_AND_OUTPUT}
    if is_integer and 1 < groups < layer.in_channels:
        return _grouped(scope, node, layer, parameters, settings)
    kind = "Convolution" if groups == 1 else "ConvolutionDepthWise"
    settings |= {0: layer.out_channels, 6: parameters.weight.size} | ({7: groups} if groups > 1 else {})
    source, numbers = _read(scope, node, layer), parameters.numbers(ends=step is not None)
    return scope.writer.emit(kind, str(node.target), [source], sizes_of(node), settings, numbers, step)


def _grouped(scope: Scope, node: fx.Node, layer: Any, parameters: _Parameters, settings: Settings) -> Value:
    """Write an int8 convolution for each group: ncnn has one scale for all channels of one, and on x86 other sums."""
    writer, name, groups = scope.writer, str(node.target), layer.groups
    (read,) = scope.operands(node)
    channels, outputs = layer.in_channels // groups, layer.out_channels // groups
    height, width = read.sizes[1:]
    slicing = {0: [channels] * groups}
    blobs = writer.file.add("Slice", f"{name}_slice", [writer.as_float(read).blob], slicing, results=groups)
    results, step = [], _end(layer)
    for group, blob in enumerate(blobs):
        part = parameters.part(slice(group * outputs, (group + 1) * outputs))
        source = writer.on_grid(Value(blob, (channels, height, width)), layer.input)
        own = dict(settings) | {0: outputs, 6: part.weight.size}
        sizes = (outputs, *sizes_of(node)[1:])
        numbers = part.numbers(ends=step is not None)
        results.append(writer.emit("Convolution", f"{name}_{group}", [source], sizes, own, numbers, step))
    return writer.emit("Concat", f"{name}_concat", results, sizes_of(node), {0: 0}, step=step)


def _read(scope: Scope, node: fx.Node, layer: Any) -> Value:
    (value,) = scope.operands(node)
    is_integer = isinstance(layer, QuantizedLayer)
    return scope.writer.on_grid(value, layer.input) if is_integer else scope.writer.as_float(value)


def _geometry(layer: Any) -> dict[int, Any]:
    (height, width), (rows, columns) = layer.kernel_size, layer.padding
    settings = {1: width, 11: height, 2: layer.dilation[1], 12: layer.dilation[0]}
    settings |= {3: layer.stride[1], 13: layer.stride[0], 4: columns, 14: rows}
    return settings | {5: int(layer.bias is not None)}


def _parameters(layer: Any) -> _Parameters:
    if not isinstance(layer, QuantizedLayer):
        return _Parameters(
            weight=_array(layer.weight), bias=None if layer.bias is None else _array(layer.bias), factor=None
        )
    integers = layer.integers
    factor = np.broadcast_to(_array(layer.rescale).reshape(-1), len(integers.weight)).astype(np.float32)
    bias = None if integers.bias is None else _array(integers.bias).astype(np.float32) * factor
    return _Parameters(weight=_array(integers.weight), bias=bias, factor=factor)


def _end(layer: Any) -> float | None:
    return layer.end if isinstance(layer, QuantizedLayer) else None


def _in_unit(layer: Any, limits: Limits) -> Limits:
    """Return limits in the unit in which a layer computes: steps of the grid that it ends on, or as they are."""
    step = _end(layer)
    if step is None:
        return limits
    factor = np.float32(1) / np.float32(step)
    low, high = (float(np.float32(limit) * factor) for limit in limits)
    return low, high


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()
