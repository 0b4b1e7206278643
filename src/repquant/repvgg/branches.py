"""Move what was done to a deploy model back into the branches that it came from.

Both functions return a network in training form whose equivalent kernels are the wanted ones, so that training goes on
with the branches from the best that post-training quantization found.
"""

import copy

import torch
from torch import Tensor, nn

from repquant.graph.channels import Channels, scale_layer
from repquant.models.blocks import ConvBN, RepVGGBlock, TrainingBlock
from repquant.models.fuse import equivalent_kernel, inference_scale_shift
from repquant.models.network import RepVGG
from repquant.models.qarep import QARepVGGBlock
from repquant.models.repopt_blocks import RepOptBlock, RepOptSearchBlock
from repquant.numerics.equalization import scales_at


@torch.no_grad()
def scale_branches(model: RepVGG, channels: Channels, scales: Tensor) -> RepVGG:
    """Return a copy in training form whose channels are multiplied by scales.

    It computes the same in evaluation mode. Convolutions and normalizations take the scales up, so that statistics
    remain those of their inputs; what a block of another kind than RepVGG's can't take up is left to `absorb`.

    Args:
        model: training form; it is not changed.
        channels: of its deploy form, captured.
        scales: (count,), positive.
    """
    scaled = copy.deepcopy(model)
    blocks = training_blocks(scaled)
    for name, indices in channels.layers.items():
        inputs, outputs = (scales_at(scales, index).to(torch.float32) for index in (indices.inputs, indices.outputs))
        block = blocks.get(name.removesuffix(".conv"))
        if block is None:  # the head, or a layer of squeeze-and-excite
            scale_layer(scaled.get_submodule(name), inputs, outputs)
        elif isinstance(block, RepVGGBlock):
            _scale_block(block, inputs, outputs)
    return scaled


@torch.no_grad()
def normalize_branches(model: RepVGG) -> RepVGG:
    """Return a copy in training form whose branches' normalizations multiply by 1; it computes the same.

    A step of gradient descent on a branch's kernel moves the equivalent kernel by the square of the factor
    t = gamma / sqrt(var + eps) of its normalization, another learning rate for every channel. With t in the kernels,
    and the statistics of its outputs, the learning rate of a branch is that of the kernel that is deployed. Channels
    whose gamma is about 0 stay as they are, and so do blocks of another kind than RepVGG's.
    """
    changed = copy.deepcopy(model)
    for block in training_blocks(changed).values():
        if isinstance(block, RepVGGBlock):
            for branch in (block.conv3x3, block.conv1x1):
                _normalize(branch)
    return changed


def _normalize(branch: ConvBN) -> None:
    bn = branch.bn
    assert bn.running_mean is not None
    assert bn.running_var is not None
    variance = bn.weight.square() - bn.eps  # gamma / sqrt(var + eps) is 1
    t = torch.where(variance > 0, inference_scale_shift(bn)[0], 1.0)
    branch.conv.weight.mul_(t.view(-1, 1, 1, 1))
    bn.running_mean.mul_(t)
    bn.running_var.copy_(torch.where(variance > 0, variance, bn.running_var))
    bn.weight.copy_(torch.where(variance > 0, bn.weight.abs(), bn.weight))


@torch.no_grad()
def absorb(model: RepVGG, deploy: RepVGG) -> RepVGG:
    """Return a copy in training form that equals a deploy model; differences go into the 3x3 branches.

    The kernel of a 3x3 branch reaches every weight of the equivalent kernel, with the scale of its normalization as a
    factor. Output channels in which that scale is 0 keep the kernel that they have.

    Args:
        model: training form.
        deploy: the same architecture in deploy form, with other weights.
    """
    changed = copy.deepcopy(model)
    for name, block in training_blocks(changed).items():
        layer = deploy.get_submodule(f"{name}.conv")
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        kernel, bias = equivalent_kernel(block)
        weight, shift, factor = _dense_parameters(block)
        reachable = factor != 0
        weight += torch.where(reachable, 1 / factor, 0).view(-1, 1, 1, 1) * (layer.weight - kernel)
        shift += layer.bias - bias
    changed.head.load_state_dict(deploy.head.state_dict())
    return changed


def training_blocks(model: nn.Module) -> dict[str, TrainingBlock]:
    """Return the blocks in training form by name."""
    return {name: block for name, block in model.named_modules() if isinstance(block, TrainingBlock)}


def _dense_parameters(block: TrainingBlock) -> tuple[Tensor, Tensor, Tensor]:
    """Return the 3x3 kernel, a shift (O,) that is added behind it, and the factor (O,) it is fused with."""
    match block:
        case RepVGGBlock():
            bn = block.conv3x3.bn
            return block.conv3x3.conv.weight, bn.bias, inference_scale_shift(bn)[0]
        case QARepVGGBlock():
            inner, outer = (inference_scale_shift(bn)[0] for bn in (block.conv3x3.bn, block.bn))
            return block.conv3x3.conv.weight, block.bn.bias, inner * outer
        case RepOptSearchBlock():
            return block.conv3x3.weight, block.bn.bias, block.scale3x3.weight * inference_scale_shift(block.bn)[0]
        case RepOptBlock():
            return block.conv3x3.weight, block.bn.bias, inference_scale_shift(block.bn)[0]
    raise NotImplementedError(f"{type(block).__name__} has no 3x3 branch that is known here")


def _scale_block(block: RepVGGBlock, inputs: Tensor, outputs: Tensor) -> None:
    """Let a block expect an input that is multiplied by scales (I,), and multiply its output by (O,)."""
    for branch in (block.conv3x3, block.conv1x1):
        scale_layer(branch.conv, inputs, torch.ones_like(outputs))
    if (bn := block.identity) is not None:
        assert bn.running_mean is not None
        assert bn.running_var is not None
        deviation = torch.sqrt(bn.running_var + bn.eps)
        bn.running_mean.mul_(inputs)
        bn.running_var.mul_(inputs.square())
        # gamma' / sqrt(var' + eps) has to be gamma / sqrt(var + eps) / inputs, eps included.
        bn.weight.mul_(torch.sqrt(bn.running_var + bn.eps) / (deviation * inputs))
    for bn in (block.conv3x3.bn, block.conv1x1.bn, block.identity):
        if bn is not None:
            bn.weight.mul_(outputs)
            bn.bias.mul_(outputs)
