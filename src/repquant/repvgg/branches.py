"""Move what was done to a deploy model back into the branches that it came from.

Both functions return a network in training form whose equivalent kernels are the wanted ones, so that training goes on
with the branches from the best that post-training quantization found.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repquant.models.blocks import ConvBN, RepVGGBlock, ShortcutBlock, SqueezeExcite, TrainingBlock
from repquant.models.fuse import equivalent_kernel, identity_kernel, inference_scale_shift
from repquant.models.network import RepVGG
from repquant.models.qarep import QARepVGGBlock
from repquant.models.repopt_blocks import RepOptBlock, RepOptSearchBlock
from repquant.quant.equalize import Link, divide_columns


@torch.no_grad()
def scale_branches(model: RepVGG, links: Sequence[Link], scales: Sequence[Tensor]) -> RepVGG:
    """Return a copy in training form in which the tensor of each link is multiplied by its scales (C,).

    It computes the same in evaluation mode. Convolutions and normalizations take the scales up, so that statistics
    remain those of their inputs; what a block of another kind than RepVGG's can't take up is left to `absorb`.
    """
    scaled = copy.deepcopy(model)
    for link, scale in zip(links, scales, strict=True):
        producer, consumer = (_block_of(scaled, layer) for layer in (link.producer, link.consumer))
        factor = scale.to(torch.float32)
        if isinstance(producer, RepVGGBlock):
            for bn in (producer.conv3x3.bn, producer.conv1x1.bn, producer.identity):
                if bn is not None:
                    bn.weight.mul_(factor)
                    bn.bias.mul_(factor)
        if isinstance(consumer, RepVGGBlock):
            _scale_input(consumer, factor)
        elif isinstance(consumer, nn.Linear):
            divide_columns(consumer, factor)
        for name in link.excitations:
            excitation = scaled.get_submodule(name)
            assert isinstance(excitation, SqueezeExcite)
            divide_columns(excitation.down, factor)
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
        deploy: the same architecture in deploy form, with other weights; its blocks may add their identity branch as
            a residual.
    """
    changed = copy.deepcopy(model)
    for name, block in training_blocks(changed).items():
        layer = deploy.get_submodule(f"{name}.conv")
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        kernel, bias = equivalent_kernel(block)
        if is_residual(deploy, name):
            kernel = kernel - identity_kernel(len(kernel), block.spec.groups, kernel.dtype, kernel.device)
        weight, shift, factor = _dense_parameters(block)
        reachable = factor != 0
        weight += torch.where(reachable, 1 / factor, 0).view(-1, 1, 1, 1) * (layer.weight - kernel)
        shift += layer.bias - bias
    changed.head.load_state_dict(deploy.head.state_dict())
    return changed


def is_residual(deploy: nn.Module, block: str) -> bool:
    """Whether a block of a deploy model adds its input to the output of its convolution."""
    return isinstance(deploy.get_submodule(block), ShortcutBlock)


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


def _block_of(model: RepVGG, layer: str) -> nn.Module:
    """Return the block whose deploy form has the layer `layer`; the head is a block of its own."""
    return model.get_submodule(layer.removesuffix(".conv"))


def _scale_input(block: RepVGGBlock, factor: Tensor) -> None:
    """Let a block expect an input that is multiplied by a factor (C,)."""
    for branch in (block.conv3x3, block.conv1x1):
        divide_columns(branch.conv, factor)
    if (bn := block.identity) is not None:
        assert bn.running_mean is not None
        assert bn.running_var is not None
        deviation = torch.sqrt(bn.running_var + bn.eps)
        bn.running_mean.mul_(factor)
        bn.running_var.mul_(factor.square())
        # gamma' / sqrt(var' + eps) has to be gamma / sqrt(var + eps) / factor, eps included.
        bn.weight.mul_(torch.sqrt(bn.running_var + bn.eps) / (deviation * factor))
