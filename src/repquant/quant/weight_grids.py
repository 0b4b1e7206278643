"""Grids of weights whose ranges a search chooses, for layers of which some weights may not be clipped.

A range with the least squared error clips the largest weights. Where an identity branch lands these are the very ones
that the network depends on, so no range ends below them. Elsewhere clipping pays for the weights and not always for the
network: what is clipped all errs in one direction, and layers behind each other add it up. On RepVGG-A0 with 4 bits,
the identity as a residual and error feedback, the KL to float (x 1000, 192 training images) is 5.3 with "max", 16.8
with "mse", and with 3 bits 88 and 229. So "max" is the default.
"""

from collections.abc import Collection, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from repquant.numerics.affine import Grid, Scheme, grid_for_range
from repquant.numerics.weight_ranges import least_squares_amax
from repquant.quant.convert import Layer, Range, rounded_points
from repquant.quant.diagonal import identity_weights
from repquant.simulation.integers import smallest_scale
from repquant.targets.target import Target

WeightRanges = Literal["max", "mse"]
WEIGHT_RANGES: tuple[WeightRanges, ...] = get_args(WeightRanges)


def find_weight_grids(
    model: nn.Module,
    weight_ranges: WeightRanges,
    ranges: Mapping[str, Range],
    target: Target,
    keep_float: Collection[str] = (),
) -> dict[str, Grid]:
    """Return the grids of the weights for `quantize_model`, by layer; none for "max", which it takes by itself.

    Args:
        model: deploy model in float.
        weight_ranges: "max" (the largest magnitude) or "mse", see `least_squares_grid`.
        ranges: of each quantization point.
        target: the schemes.
        keep_float: layers that stay in float.

    Raises:
        InputError: a point without a range.
    """
    if weight_ranges == "max":
        return {}
    return {
        name: least_squares_grid(layer, grid_for_range(*ranges[name], target.activation).scale, target.weight)
        for name, layer in rounded_points(model, ranges, target, keep_float).items()
        if isinstance(layer, Layer)
    }


def least_squares_grid(layer: Layer, input_scale: Tensor, scheme: Scheme) -> Grid:
    """Return the grid with the least squared error of a layer's weights among those that it can do with.

    It clips no weight that an identity branch may be part of, and its step is large enough for the bias to fit 32 bits.

    Args:
        layer: in float.
        input_scale: scalar scale of the layer's input.
        scheme: signed symmetric scheme of the weight.
    """
    weight = layer.weight.detach()
    identity = identity_weights(layer)
    needed = torch.zeros(len(weight)) if identity is None else identity.abs()
    if scheme.channel_axis is None:
        needed = needed.max()
    if layer.bias is not None:
        needed = torch.maximum(needed, smallest_scale(layer.bias, input_scale, scheme) * scheme.qmax)
    amax = least_squares_amax(weight, needed, scheme)
    return grid_for_range(-amax, amax, scheme)
