"""Round the weights of a quantized model with error feedback, each layer for the inputs that it will meet.

The graph stays as it is, nothing is trained, and the images need no labels.
"""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

import torch
from torch import Tensor, nn

from repquant.numerics.affine import Grid
from repquant.numerics.feedback_rounding import round_with_feedback
from repquant.numerics.patches import draw_positions, outputs_at
from repquant.quant.convert import Layer, layer_pairs
from repquant.quant.rounded import Rounded
from repquant.quant.sampling import inputs_at, maps
from repquant.quant.sharing import refuse_second_use, refuse_shared_parameters
from repquant.simulation.integers import quantize_parameters
from repquant.simulation.layers import QuantizedConv2d, QuantizedLinear

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Target = tuple[Tensor, Tensor]  # positions (N, P) and the float outputs (N*P, C) there
_REMEDY = "learn the rounding, or round to the nearest without images"


@torch.inference_mode()
def round_weights(
    model: ModuleT,
    quantized: nn.Module,
    images: Tensor,
    *,
    patches: int = 4096,
    on_layer: Callable[[int], None] = lambda _: None,
) -> Rounded[ModuleT]:
    """Return the float model with weights on the grids of `quantized`, rounded with error feedback.

    The images pass through the quantized model once. When they reach a layer, its weights are rounded for the second
    moments of the input that is there, and its bias takes up what is left between the mean outputs; then they go on
    through the rounded layer. The mean needs no feedback, so the moments of a layer with a bias are taken about it.

    Args:
        model: deploy model in float; it is not changed.
        quantized: the same model after `quantize_model`, whose weight grids are kept.
        images: (N, 3, H, W), one batch: the largest activation of all of them has to fit the memory about three times.
        patches: input patches that a layer looks at, at most, the same number from each image.
        on_layer: called with 1 after each layer.

    Raises:
        InputError: a layer that is used more than once, or that shares its weight or bias with another one.
    """
    rounding = copy.deepcopy(quantized)
    layers = layer_pairs(model, rounding)
    refuse_shared_parameters({name: layer for name, (layer, _) in layers.items()}, _REMEDY)
    rounded = copy.deepcopy(model)
    targets: dict[str, Target] = {}
    with ExitStack() as hooks:
        for name, (layer, _) in layers.items():
            hooks.callback(layer.register_forward_hook(_sample(name, patches, targets)).remove)
        model(images)

    def round_layer(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def before_forward(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(layer, QuantizedConv2d | QuantizedLinear)
            float_layer = rounded.get_submodule(name)
            assert isinstance(float_layer, Layer)
            x = layer.input.steps(inputs[0]) * layer.input.scale
            grid = layer.integers.weight_grid
            weight, bias = _round_layer(float_layer, grid, x, *targets.pop(name))
            float_layer.weight.copy_(weight)
            if float_layer.bias is not None and bias is not None:
                float_layer.bias.copy_(bias)
            layer.adopt(quantize_parameters(weight, bias, torch.tensor(layer.input.scale), grid))
            on_layer(1)

        return before_forward

    with ExitStack() as hooks:
        for name, (_, quantized_layer) in layers.items():
            hooks.callback(quantized_layer.register_forward_pre_hook(round_layer(name)).remove)
        rounding(images)
    return Rounded(rounded, {name: integer.integers.weight_grid for name, (_, integer) in layers.items()})


def _sample(name: str, patches: int, targets: dict[str, Target]) -> Callable[[nn.Module, object, Tensor], None]:
    def keep(layer: nn.Module, _inputs: object, y: Tensor) -> None:
        assert isinstance(layer, Layer)
        refuse_second_use(name, targets, _REMEDY)
        places = maps(y, layer)
        positions = draw_positions(len(places), places.shape[2], patches)
        targets[name] = positions, outputs_at(places, positions)

    return keep


def _round_layer(
    layer: Layer, grid: Grid, x: Tensor, positions: Tensor, target: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return the layer's weight on `grid`, and its bias, for the quantized input `x` and float outputs at positions."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    inputs = inputs_at(layer, x, positions).unbind(1)  # (rows, K) for each group
    weights = layer.weight.flatten(1).chunk(groups)
    scales = grid.scale.expand(len(layer.weight)).chunk(groups)
    rounded, means = [], []
    for patch, weight, scale in zip(inputs, weights, scales, strict=True):
        mean = patch.mean(0)
        varying = patch if layer.bias is None else patch - mean
        moments = varying.T @ varying / len(varying)
        integers = round_with_feedback(weight, moments, scale, grid.scheme.qmin, grid.scheme.qmax)
        rounded.append(integers * scale.unsqueeze(1))
        means.append(rounded[-1] @ mean)
    weight = torch.cat(rounded).reshape(layer.weight.shape)
    return weight, None if layer.bias is None else target.mean(0) - torch.cat(means)
