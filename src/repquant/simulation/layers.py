"""Modules that compute in float32 what a runtime computes in integers.

A layer multiplies integers and rescales the sum, as a runtime does, instead of multiplying rounded floats: float32
holds integers up to 2^24 exactly, so the sum does not depend on the order of its terms. With rounded floats about one
activation in a thousand lands on the other side of a rounding border, and simulation and runtime drift apart.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repquant.numerics.affine import Grid
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

    def extra_repr(self) -> str:
        """Describe the grid."""
        sign = "int" if self.scheme.signed else "uint"
        return f"{sign}{self.scheme.bits}, scale={self.scale:.3g}, zero_point={self.zero_point}"


class QuantizedConv2d(nn.Conv2d):
    """A convolution of integers; `weight` and `bias` hold those of `integers` as float32."""

    accumulator_scale: Tensor
    integers: IntegerParameters

    def __init__(self, conv: nn.Conv2d, input_grid: Grid, weight_grid: Grid) -> None:
        with torch.device("meta"):
            super().__init__(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,  # type: ignore[arg-type]  # torch stores tuples of the right length
                conv.stride,  # type: ignore[arg-type]
                conv.padding,  # type: ignore[arg-type]
                conv.dilation,  # type: ignore[arg-type]
                conv.groups,
                bias=conv.bias is not None,
                padding_mode=conv.padding_mode,
            )
        self.input = FakeQuantize(input_grid)
        adopt(self, quantize_parameters(conv.weight, conv.bias, input_grid.scale, weight_grid))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, H', W')."""
        accumulator = super().forward(self.input.steps(x))
        return accumulator.mul_(self.accumulator_scale)


class QuantizedLinear(nn.Linear):
    """A linear layer of integers; `weight` and `bias` hold those of `integers` as float32."""

    accumulator_scale: Tensor
    integers: IntegerParameters

    def __init__(self, linear: nn.Linear, input_grid: Grid, weight_grid: Grid) -> None:
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.input = FakeQuantize(input_grid)
        adopt(self, quantize_parameters(linear.weight, linear.bias, input_grid.scale, weight_grid))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I) to (N, O)."""
        accumulator = F.linear(self.input.steps(x), self.weight, self.bias)
        return accumulator.mul_(self.accumulator_scale)


class QuantizedInput(nn.Module):
    """A module without weights of its own (a pool, a squeeze-and-excite block) behind a quantized input."""

    def __init__(self, module: nn.Module, input_grid: Grid) -> None:
        super().__init__()
        self.input = FakeQuantize(input_grid)
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to the quantized input."""
        y: Tensor = self.module(self.input(x))
        return y


QuantizedLayer = QuantizedConv2d | QuantizedLinear


def adopt(layer: QuantizedLayer, integers: IntegerParameters) -> None:
    """Make `layer` compute with other integers."""
    layer.integers = integers
    layer.weight = nn.Parameter(integers.weight.float(), requires_grad=False)
    if integers.bias is not None:
        layer.bias = nn.Parameter(integers.bias.float(), requires_grad=False)
    per_channel = (-1, 1, 1) if isinstance(layer, QuantizedConv2d) else (-1,)
    layer.register_buffer("accumulator_scale", integers.bias_scale.reshape(per_channel))
