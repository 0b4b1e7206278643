"""Modules that compute in float32 what a runtime computes in integers.

A layer multiplies integers and rescales the sum, as a runtime does, instead of multiplying rounded floats: float32
holds integers up to 2^24 exactly, so the sum does not depend on the order of its terms. With rounded floats about one
activation in a thousand lands on the other side of a rounding border, and simulation and runtime drift apart.

Where only one grid reads the sum, a layer ends on that grid: the sum is rescaled once, by s_x s_w / s_y as a float32,
as ONNX Runtime does. With s_x s_w first and 1 / s_y later, one image in seven of a RepVGG-A0 had an activation on the
other side.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from repquant.numerics.affine import Grid, Scheme
from repquant.simulation.integers import IntegerParameters, quantize_parameters


class FakeQuantize(nn.Module):
    """Round a tensor to a fixed grid with one scale (quantize and dequantize in one step)."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.scheme = grid.scheme
        self.scale = float(grid.scale)
        self.zero_point = int(grid.zero_point)
        self._steps_per_unit = float(1.0 / grid.scale)  # float32, as torch rounds it

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` rounded to the grid, same shape."""
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, self.scheme.qmin, self.scheme.qmax)

    def steps(self, x: Tensor) -> Tensor:
        """Return q - zero_point as float32: the integers that `x` is rounded to, same shape."""
        low, high = self.scheme.qmin - self.zero_point, self.scheme.qmax - self.zero_point
        return (x * self._steps_per_unit).round_().clamp_(low, high)

    def counts(self, x: Tensor) -> Tensor:
        """Return how many values of `x` fall on each integer of the grid, int64, between what lies below and above.

        NaN counts as below.
        """
        low, high = self.scheme.qmin - 1, self.scheme.qmax + 1
        places = (x * self._steps_per_unit).round_().add_(self.zero_point - low).clamp_(0, high - low).nan_to_num_(0.0)
        return torch.bincount(places.to(torch.int16).flatten(), minlength=high - low + 1)

    def extra_repr(self) -> str:
        """Describe the grid."""
        sign = "int" if self.scheme.signed else "uint"
        return f"{sign}{self.scheme.bits}, scale={self.scale:.3g}, zero_point={self.zero_point}"


class QuantizedLayer(nn.Module):
    """A layer of integers; `weight` and `bias` hold those of `integers` as float32.

    Its classes are the layers of torch with this one in front: the layer's own `forward` multiplies the integers.

    Attributes:
        end: step of the grid that the output is rounded to; None for an output that is not rounded.
        rescale: () or (O, 1, ...) float32, what an integer of the accumulator stands for, in steps of `end` if there is
            one.
    """

    end: float | None = None
    rescale: Tensor
    bias: Tensor | None
    input: FakeQuantize
    integers: IntegerParameters
    weight: Tensor

    def adopt(self, integers: IntegerParameters) -> None:
        """Compute with other integers."""
        self.integers = integers
        self.weight = nn.Parameter(integers.weight.float(), requires_grad=False)
        if integers.bias is not None:
            self.bias = nn.Parameter(integers.bias.float(), requires_grad=False)
        spatial = [1] * (integers.weight.dim() - 2)
        scale = integers.bias_scale if self.end is None else integers.bias_scale / self.end
        self.register_buffer("rescale", scale.reshape(-1, *spatial))

    def end_on(self, step: Tensor) -> None:
        """Round the output to multiples of a step (); who reads it clips it."""
        self.end = float(step)
        self.adopt(self.integers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, ...) to (N, O, ...); a linear layer (..., I) to (..., O)."""
        steps = self.input.steps(x)
        accumulator: Tensor = super().forward(steps) if steps.device.type == "cpu" else self._exact(steps)
        accumulator.mul_(self.rescale)
        return accumulator if self.end is None else accumulator.round_().mul_(self.end)

    def _exact(self, steps: Tensor) -> Tensor:
        """Return the sums of products, added up in float64 and then rounded to float32.

        A GPU's libraries choose how they convolve. In float32 that may be in TF32, or by transforms (Winograd) whose
        factors are no integers; in float64 every order gives the integer, up to 2^53.
        """
        wide = copy.copy(self)
        parameters = dict(self.named_parameters(recurse=False))
        wide._parameters = {name: nn.Parameter(x.double(), requires_grad=False) for name, x in parameters.items()}
        wide._parameters.setdefault("bias", None)
        accumulator: Tensor = super(QuantizedLayer, wide).forward(steps.double())
        return accumulator.float()

    def _fill(self, layer: nn.Module, input_grid: Grid, weight_grid: Grid) -> None:
        assert isinstance(layer.weight, Tensor)
        bias = layer.bias
        assert bias is None or isinstance(bias, Tensor)
        self.input = FakeQuantize(input_grid)
        groups = layer.groups if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d) else 1
        self.adopt(quantize_parameters(layer.weight, bias, input_grid.scale, weight_grid, groups))


class QuantizedConv1d(QuantizedLayer, nn.Conv1d):
    """A 1-d convolution of integers, (N, I, L) to (N, O, L')."""

    def __init__(self, conv: nn.Conv1d, input_grid: Grid, weight_grid: Grid) -> None:
        _as_convolution(self, nn.Conv1d, conv, padding_mode=conv.padding_mode)
        self._fill(conv, input_grid, weight_grid)


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """A convolution of integers, (N, I, H, W) to (N, O, H', W')."""

    def __init__(self, conv: nn.Conv2d, input_grid: Grid, weight_grid: Grid) -> None:
        _as_convolution(self, nn.Conv2d, conv, padding_mode=conv.padding_mode)
        self._fill(conv, input_grid, weight_grid)


class QuantizedConvTranspose1d(QuantizedLayer, nn.ConvTranspose1d):  # type: ignore[misc]  # no output size
    """A transposed 1-d convolution of integers, (N, I, L) to (N, O, L')."""

    def __init__(self, conv: nn.ConvTranspose1d, input_grid: Grid, weight_grid: Grid) -> None:
        _as_convolution(self, nn.ConvTranspose1d, conv, output_padding=conv.output_padding)
        self._fill(conv, input_grid, weight_grid)


class QuantizedConvTranspose2d(QuantizedLayer, nn.ConvTranspose2d):  # type: ignore[misc]
    """A transposed convolution of integers, (N, I, H, W) to (N, O, H', W')."""

    def __init__(self, conv: nn.ConvTranspose2d, input_grid: Grid, weight_grid: Grid) -> None:
        _as_convolution(self, nn.ConvTranspose2d, conv, output_padding=conv.output_padding)
        self._fill(conv, input_grid, weight_grid)


class QuantizedLinear(QuantizedLayer, nn.Linear):  # type: ignore[misc]  # torch types its bias as always there
    """A linear layer of integers, (..., I) to (..., O)."""

    def __init__(self, linear: nn.Linear, input_grid: Grid, weight_grid: Grid) -> None:
        with torch.device("meta"):
            nn.Linear.__init__(self, linear.in_features, linear.out_features, bias=linear.bias is not None)
        self._fill(linear, input_grid, weight_grid)


class QuantizedMatmul(nn.Module):
    """A matrix product of two activations in integers."""

    def __init__(self, left: Grid, right: Grid) -> None:
        super().__init__()
        self.left, self.right = FakeQuantize(left), FakeQuantize(right)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Map (..., M, K) and (..., K, N) to (..., M, N)."""
        left, right = self.left.steps(left), self.right.steps(right)
        product = left @ right if left.device.type == "cpu" else (left.double() @ right.double()).float()
        return product.mul_(self.left.scale * self.right.scale)


_QUANTIZED: dict[type[nn.Module], Any] = {
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.ConvTranspose1d: QuantizedConvTranspose1d,
    nn.ConvTranspose2d: QuantizedConvTranspose2d,
    nn.Linear: QuantizedLinear,
}


def quantize_layer(layer: nn.Module, input_grid: Grid, weight_grid: Grid) -> QuantizedLayer:
    """Return a layer, one of `graph.operators.LAYERS`, in integers."""
    quantized: QuantizedLayer = _QUANTIZED[type(layer)](layer, input_grid, weight_grid)
    return quantized


def weight_scheme(layer: nn.Module, scheme: Scheme) -> Scheme:
    """Return a target's scheme for the weight of a layer; in a transposed one the output channel is the second axis."""
    is_transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d)
    return replace(scheme, channel_axis=1) if is_transposed and scheme.channel_axis is not None else scheme


def _as_convolution(layer: Any, base: Any, conv: Any, **special: Any) -> None:
    """Initialize `layer` as a `base` with the geometry of `conv`, without memory for weights."""
    geometry = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups", "dilation")
    with torch.device("meta"):
        base.__init__(layer, **{name: getattr(conv, name) for name in geometry}, bias=conv.bias is not None, **special)
