"""The size that an update of a parameter should be measured in, when rounding is in the loop.

An update of Adam has the size of the learning rate whatever the gradient. What it does to a rounded kernel depends on
the step of the kernel's grid: that step differs by orders of magnitude between layers (channels are scaled before
training) and between 8 bits and 4. With the step as the unit one learning rate suits all layers and widths.
"""

import torch
from torch import Tensor, nn

from repquant.qat.layer import QatLayer

_FLOAT_STEPS = 127
"""Layers that stay in float are treated as if they had 8 bits."""


@torch.no_grad()
def parameter_units(network: nn.Module) -> dict[str, float]:
    """Return the unit of each parameter of a network in quantization-aware training, by its name.

    It is the mean step of the grid for a kernel, and of the kernel that it is a branch of. A parameter that is no
    kernel (bias, scale, gamma or beta) has its root mean square divided by the number of positive steps of its layer's
    kernel, so that it changes by as much in proportion as the largest weights do.
    """
    units: dict[str, float] = {}
    for layer_name, layer in network.named_modules():
        if isinstance(layer, QatLayer):
            step, steps = float(layer.weight_grid().scale.mean()), layer.weight.scheme.qmax
            for name, parameter in layer.named_parameters():
                units[f"{layer_name}.{name}"] = step if parameter.ndim > 1 else _magnitude(parameter, step) / steps
    for name, parameter in network.named_parameters():
        if name not in units:
            largest = float(parameter.abs().max()) if parameter.ndim > 1 else _magnitude(parameter, 1.0)
            units[name] = largest / _FLOAT_STEPS
    return units


def _magnitude(parameter: Tensor, otherwise: float) -> float:
    """The root mean square; `otherwise` for zeros, which must be free to move."""
    return float(parameter.square().mean().sqrt()) or otherwise
