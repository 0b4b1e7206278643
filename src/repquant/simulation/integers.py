"""The integers that a layer is served with: int8 weights and int32 biases."""

from dataclasses import dataclass

import torch
from torch import Tensor

from repquant.errors import InputError
from repquant.numerics.affine import (
    INT32_MAX,
    Grid,
    Scheme,
    channel_range,
    dequantize,
    grid_for_range,
    to_integers,
)


@dataclass(frozen=True)
class IntegerParameters:
    """Weight and bias of one layer on their grids.

    Attributes:
        weight: (O, ...) int8; of a transposed convolution (I, O/groups, ...).
        weight_grid: scale () or (O,), zero points 0; of a transposed convolution (O/groups,).
        bias: (O,) int32 in units of `bias_scale`, or None.
        bias_scale: () or (O,) float32, input scale times weight scale: the unit of the int32 accumulator.
    """

    weight: Tensor
    weight_grid: Grid
    bias: Tensor | None
    bias_scale: Tensor

    def float_weight(self) -> Tensor:
        """Return the float32 weight that the integers stand for."""
        return dequantize(self.weight, self.weight_grid)

    def float_bias(self) -> Tensor | None:
        """Return the float32 bias that the integers stand for."""
        return None if self.bias is None else self.bias * self.bias_scale


def weight_grid(weight: Tensor, bias: Tensor | None, input_scale: Tensor, scheme: Scheme) -> Grid:
    """Return the grid whose range is the largest magnitude of the weights (per channel or tensor).

    A channel whose weights are so small that its bias would not fit 32 bits gets a larger scale.

    Args:
        weight: (O, ...) float weight; (I, O/groups, ...) with channel axis 1.
        bias: (O,) float bias or None.
        input_scale: scalar scale of the layer's input.
        scheme: signed symmetric scheme of the weight.
    """
    assert scheme.signed, "weights are signed"
    assert scheme.symmetric, "a zero point on weights would need a correction per output"
    low, high = channel_range(weight.detach(), scheme)
    high = torch.maximum(high, smallest_scale(bias, input_scale, high.shape) * scheme.qmax)
    return grid_for_range(low, high, scheme)


def smallest_scale(bias: Tensor | None, input_scale: Tensor, shape: torch.Size) -> Tensor:
    """Return the smallest weight scales with which a bias (O,) fits 32 bits; 0 without a bias.

    Args:
        bias: of the layer.
        input_scale: scalar scale of the layer's input.
        shape: of the scales: (), (O,), or (O/groups,) of a transposed convolution, whose groups share them.
    """
    if bias is None:
        return input_scale.new_zeros(())
    largest = bias.detach().abs().reshape(-1, *shape).amax(0)
    # float32 rounds near 2^31; half of the range is out of its reach.
    return largest / (input_scale * (INT32_MAX // 2))


def stored_bias(bias: Tensor, scheme: Scheme) -> Tensor:
    """Return a bias (O,) as files hold it beside weights of `scheme`: biases have the type of the scales.

    Raises:
        InputError: a bias that is too large for FP16.
    """
    if scheme.scale_type == "float32":
        return bias
    stored = bias.to(torch.float16).to(bias.dtype)
    if torch.isinf(stored).any():
        raise InputError(f"a bias of {float(bias.abs().max()):.3g} does not fit FP16; store the scales as float32")
    return stored


def quantize_parameters(
    weight: Tensor, bias: Tensor | None, input_scale: Tensor, grid: Grid, groups: int = 1
) -> IntegerParameters:
    """Return the integers of a layer.

    Args:
        weight: (O, ...) float weight; (I, O/groups, ...) of a transposed convolution.
        bias: (O,) float bias or None.
        input_scale: scalar scale of the layer's input.
        grid: of the weight, see `weight_grid`.
        groups: of a transposed convolution, whose groups share the scales of their channels.

    Raises:
        InputError: a bias that does not fit 32 bits, or FP16 where scales are stored so.
    """
    bias_scale = input_scale * grid.scale
    if grid.scheme.channel_axis == 1:
        bias_scale = bias_scale.repeat(groups)
    integer_bias = None
    if bias is not None:
        integer_bias = torch.round(stored_bias(bias.detach(), grid.scheme).double() / bias_scale.double())
    if integer_bias is not None and (integer_bias.abs() > INT32_MAX).any():
        raise InputError("a bias does not fit 32 bits in steps of input scale x weight scale; widen the weight grid")
    return IntegerParameters(
        weight=to_integers(weight.detach(), grid).to(torch.int8),
        weight_grid=grid,
        bias=None if integer_bias is None else integer_bias.to(torch.int32),
        bias_scale=bias_scale,
    )
