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
from repquant.numerics.patches import Geometry, draw_positions, outputs_at, patches_at
from repquant.quant.convert import Layer, layer_pairs
from repquant.quant.fake_quant import QuantizedConv2d, QuantizedLinear, adopt
from repquant.quant.integers import quantize_parameters
from repquant.quant.rounded import Rounded

ModuleT = TypeVar("ModuleT", bound=nn.Module)


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
    """
    rounding = copy.deepcopy(quantized)
    layers = layer_pairs(model, rounding)
    rounded = copy.deepcopy(model)
    targets: dict[str, Tensor] = {}
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
            weight, bias = _round_layer(float_layer, grid, x, targets.pop(name), patches)
            float_layer.weight.copy_(weight)
            if float_layer.bias is not None and bias is not None:
                float_layer.bias.copy_(bias)
            adopt(layer, quantize_parameters(weight, bias, torch.tensor(layer.input.scale), grid))
            on_layer(1)

        return before_forward

    with ExitStack() as hooks:
        for name, (_, layer) in layers.items():
            hooks.callback(layer.register_forward_pre_hook(round_layer(name)).remove)
        rounding(images)
    return Rounded(rounded, {name: layer.integers.weight_grid for name, (_, layer) in layers.items()})


def _sample(name: str, patches: int, targets: dict[str, Tensor]) -> Callable[[nn.Module, object, Tensor], None]:
    def keep(_layer: nn.Module, _inputs: object, y: Tensor) -> None:
        maps = y.reshape(*y.shape[:2], -1)
        targets[name] = outputs_at(maps, draw_positions(len(maps), maps.shape[2], patches))

    return keep


def _round_layer(layer: Layer, grid: Grid, x: Tensor, target: Tensor, patches: int) -> tuple[Tensor, Tensor | None]:
    """Return the layer's weight on `grid`, and its bias, for the quantized input `x` and sampled float outputs."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    inputs = _sampled_inputs(layer, x, patches).chunk(groups, dim=1)  # (rows, K) for each group
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


def _sampled_inputs(layer: Layer, x: Tensor, patches: int) -> Tensor:
    """Return the inputs (rows, groups*K) of the sampled outputs."""
    if isinstance(layer, nn.Linear):
        return x
    geometry = _geometry(layer)
    height, width = geometry.output_size((x.shape[2], x.shape[3]))
    return patches_at(x, geometry, draw_positions(len(x), height * width, patches))


def _geometry(conv: nn.Conv2d) -> Geometry:
    padding = conv.padding
    assert isinstance(padding, tuple), "deploy convolutions have their padding in pixels"
    assert conv.padding_mode == "zeros"
    sizes = (conv.kernel_size, conv.stride, padding, conv.dilation)
    kernel, stride, padding, dilation = ((size[0], size[-1]) for size in sizes)
    return Geometry(kernel=kernel, stride=stride, padding=padding, dilation=dilation)
