"""Grids of weights whose ranges a search chooses, for layers of which some weights may not be clipped.

A range with the least squared error clips the largest weights. Where an identity branch lands these are the very ones
that the network depends on, so no range ends below them. Elsewhere clipping pays for the weights and not always for the
network: what is clipped all errs in one direction, and layers behind each other add it up. On RepVGG-A0 with 4 bits,
the identity as a residual and error feedback, the KL to float (x 1000, 192 training images) is 5.3 with "max", 16.8
with "mse", and with 3 bits 88 and 229. So "max" is the default. Since then rounding with error feedback and learned
rounding search from there on by the loss of the outputs (`methods.kernel_rounding`), with fewer than 8 bits.
"""

import torch
from torch import Tensor, fx, nn

from repquant.choices import WeightRanges
from repquant.graph.plan import Plan
from repquant.methods.identity import identity_weights
from repquant.methods.layer_positions import parameters_of
from repquant.numerics.affine import Grid, Scheme, channel_range, grid_for_range
from repquant.numerics.weight_ranges import least_squares_amax
from repquant.simulation.integers import smallest_scale
from repquant.simulation.layers import weight_scheme


def find_weight_grids(graph: fx.GraphModule, weight_ranges: WeightRanges, plan: Plan) -> dict[str, Grid]:
    """Return the grids of the weights by layer; none for "max", which a plan without weight grids means.

    Args:
        graph: from `capture`.
        weight_ranges: "max" (the largest magnitude) or "mse", see `least_squares_grid`.
        plan: for this network.
    """
    if weight_ranges == "max":
        return {}
    return {
        name: least_squares_grid(graph.get_submodule(name), plan.input_scale(name), plan.weight_scheme(name))
        for name in plan.layout.layers
    }


def least_squares_grid(layer: nn.Module, input_scale: Tensor, scheme: Scheme) -> Grid:
    """Return the grid with the least squared error of a layer's weights among those that it can do with.

    It clips no weight that an identity branch may be part of, and its step is large enough for the bias to fit 32 bits.

    Args:
        layer: in float, one of `graph.operators.LAYERS`.
        input_scale: scalar scale of the layer's input.
        scheme: signed symmetric scheme of the weight, as the target has it.
    """
    weight, bias = parameters_of(layer)
    weight, scheme = weight.detach(), weight_scheme(layer, scheme)
    identity = identity_weights(layer)
    needed = weight.new_zeros(()) if identity is None else identity.abs()
    if scheme.channel_axis is None:
        needed = needed.max()
    scales = channel_range(weight, scheme)[0].shape
    needed = torch.maximum(needed, smallest_scale(bias, input_scale, scales) * scheme.qmax)
    amax = least_squares_amax(weight, needed, scheme)
    return grid_for_range(-amax, amax, scheme)
