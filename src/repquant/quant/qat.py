"""Quantization-aware training, from a float model to a network that trains, and from there to the integers.

A network in training is the deploy model with every quantized layer replaced by a `QatLayer`. What differs between the
methods is where its kernels come from, see `quant.qat_layers`.
"""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from repquant.models.network import RepVGG
from repquant.numerics.affine import Grid, grid_for_range
from repquant.quant.convert import Layer, Range, layer_pairs, quantize_model, rounded_points
from repquant.quant.qat_layers import (
    ActivationQuantizer,
    KernelSource,
    PlainKernel,
    QatInput,
    QatLayer,
    WeightQuantizer,
    WeightScales,
)
from repquant.simulation.integers import weight_grid
from repquant.targets.target import Target

ModuleT = TypeVar("ModuleT", bound=nn.Module)
QatMethod = Literal["plain", "inserted-bn", "equivalent-kernel"]
QAT_METHODS: tuple[QatMethod, ...] = get_args(QatMethod)
_READS_IMAGES = "stem.conv"


@dataclass(frozen=True)
class QatStart:
    """Where quantization-aware training starts from.

    Attributes:
        deploy: the float deploy model, whose layers the training ones replace.
        sources: layer name -> where its kernel comes from; a `PlainKernel` of the deploy layer for the others.
        ranges: of the input of each quantization point.
        weight_grids: of layers whose kernels lie on a grid already.
    """

    deploy: RepVGG
    sources: Mapping[str, KernelSource]
    ranges: Mapping[str, Range]
    weight_grids: Mapping[str, Grid] = field(default_factory=dict)


def prepare_qat(
    start: QatStart,
    target: Target,
    keep_float: Collection[str] = (),
    *,
    weight_scales: WeightScales = "max",
    learned_activations: bool = True,
) -> RepVGG:
    """Return the network that trains; its parameters are those of `start.sources`, and scales where they are learned.

    Args:
        start: the model, its kernels and its ranges.
        target: the schemes.
        keep_float: layers that are not rounded, see `convert.resolve_keep_float`; they train all the same.
        weight_scales: "max" (of the kernel, at each step), "learned" (LSQ) or "fixed".
        learned_activations: learn the scales of activations (LSQ), from the ranges on. That of the images stays: their
            range is known, and its gradient alone would need the stem's backward pass to its input, a 25th of a step.

    Raises:
        InputError: a point without a range.
    """
    points = rounded_points(start.deploy, start.ranges, target, keep_float)
    memo: dict[int, Any] = {}
    for name, module in sorted(points.items(), key=lambda item: -item[0].count(".")):
        grid = grid_for_range(*start.ranges[name], target.activation)
        quantizer = ActivationQuantizer(grid, learned_activations and name != _READS_IMAGES)
        block, _, part = name.rpartition(".")
        if part == "shortcut":  # it reads what the convolution beside it reads
            beside = memo.get(id(points.get(f"{block}.conv")))
            quantizer = beside.input if isinstance(beside, QatLayer) else quantizer
        if isinstance(module, Layer):
            source = start.sources.get(name) or PlainKernel(module)
            kernel, bias = source()
            weights = start.weight_grids.get(name) or weight_grid(
                kernel, None if bias is None else bias.detach(), grid.scale, target.weight
            )
            weight = WeightQuantizer(target.weight, weight_scales, weights)
            memo[id(module)] = QatLayer(module, source, quantizer, weight)
        else:
            memo[id(module)] = QatInput(copy.deepcopy(module, memo), quantizer)
    return relu_in_place(copy.deepcopy(start.deploy, memo))


def relu_in_place(network: RepVGG) -> RepVGG:
    """Let each ReLU overwrite its input, which nothing else reads: fewer passes over memory. Returns `network`."""
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    return network


@torch.no_grad()
def rounded_deploy(deploy: RepVGG, quantized: RepVGG) -> RepVGG:
    """Return a float deploy model with the kernels and biases that the integers of its quantized form stand for.

    The kernels before rounding drift inside their rounding cells: without rounding they are no good network.

    Args:
        deploy: float deploy model; it is not changed.
        quantized: what was made of it.
    """
    rounded = copy.deepcopy(deploy)
    for name, (_, layer) in layer_pairs(deploy, quantized).items():
        target = rounded.get_submodule(name)
        assert isinstance(target, Layer)
        target.weight.copy_(layer.integers.float_weight())
        bias = layer.integers.float_bias()
        if target.bias is not None and bias is not None:
            target.bias.copy_(bias)
    return rounded


@torch.no_grad()
def finish_qat(network: RepVGG, start: QatStart, target: Target, keep_float: Collection[str] = ()) -> RepVGG:
    """Return the quantized model whose integers are those that training saw last.

    Args:
        network: from `prepare_qat`, trained.
        start: what it was made from.
        target: the schemes.
        keep_float: layers that are not rounded.
    """
    network.eval()
    deploy = trained_deploy(network, start)
    ranges: dict[str, Range | Grid] = {}
    weight_grids = {}
    for name, module in qat_modules(network).items():
        ranges[name] = module.input.grid()
        if isinstance(module, QatLayer):
            weight_grids[name] = module.weight_grid()
    return quantize_model(deploy, ranges, target, keep_float, weight_grids)


@torch.no_grad()
def trained_deploy(network: RepVGG, start: QatStart) -> RepVGG:
    """Return the float deploy model of a network in training: its kernels before rounding."""
    deploy = copy.deepcopy(start.deploy)
    layers = {
        _deploy_name(name): module for name, module in network.named_modules() if isinstance(module, QatLayer | Layer)
    }
    for name, layer in deploy.named_modules():
        if isinstance(layer, Layer):
            trained = layers[name]
            kernel, bias = (
                trained.kernel_and_bias() if isinstance(trained, QatLayer) else (trained.weight, trained.bias)
            )
            layer.weight.copy_(kernel)
            if layer.bias is not None and bias is not None:
                layer.bias.copy_(bias)
    return deploy.eval()


def qat_modules(network: nn.Module) -> dict[str, QatLayer | QatInput]:
    """Return the modules of a network in training that round something, by their name in the deploy model."""
    return {
        _deploy_name(name): module
        for name, module in network.named_modules()
        if isinstance(module, QatLayer | QatInput)
    }


def _deploy_name(name: str) -> str:
    """Return the name without the parts that `QatInput` adds."""
    return ".".join(part for part in name.split(".") if part != "module")
