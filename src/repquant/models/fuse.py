"""The algebra of structural re-parameterization: three branches are one 3x3 convolution.

With t = gamma / sqrt(var + eps) for each branch's batch normalization in inference mode,

    W_eq = t3 * W3 + pad(t1 * W1) + t0 * I,    b_eq = sum over branches of (beta - mean * t)

(Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, section 3.3). All functions are pure,
keep the dtype of their input and are differentiable, so that training can quantize W_eq and reach the branches
through it.
"""

from functools import singledispatch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repquant.models.blocks import RepVGGBlock, TrainingBlock


def scale_shift(gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (t, shift), each (C,), with batch_norm(x) = t * x + shift for fixed statistics."""
    t = gamma / torch.sqrt(var + eps)
    return t, beta - mean * t


def pad_pointwise(kernel: Tensor) -> Tensor:
    """Embed a 1x1 kernel (O, I/groups, 1, 1) in the center of a 3x3 one (O, I/groups, 3, 3)."""
    return F.pad(kernel, [1, 1, 1, 1])


def identity_kernel(
    channels: int, groups: int, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    """Return the (channels, channels/groups, 3, 3) kernel whose grouped convolution is the identity."""
    channels_per_group = channels // groups
    output_channel = torch.arange(channels, device=device)
    kernel = torch.zeros(channels, channels_per_group, 3, 3, dtype=dtype, device=device)
    kernel[output_channel, output_channel % channels_per_group, 1, 1] = 1
    return kernel


def inference_scale_shift(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return `scale_shift` of a batch normalization by its running statistics."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    return scale_shift(bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps)


def per_output(t: Tensor) -> Tensor:
    """Give factors (O,) the shape that multiplies a kernel (O, I/groups, K, K)."""
    return t.view(-1, 1, 1, 1)


@singledispatch
def equivalent_kernel(block: TrainingBlock) -> tuple[Tensor, Tensor]:
    """Return the kernel (O, I/groups, 3, 3) and bias (O,) that equal the block's branches in inference mode.

    Gradients reach the convolutions, scales and affine parameters of the batch normalizations; the running
    statistics are constants. Each kind of block registers its algebra.
    """
    raise NotImplementedError(f"{type(block).__name__} has no registered equivalent kernel")


@equivalent_kernel.register
def _(block: RepVGGBlock) -> tuple[Tensor, Tensor]:
    w3 = block.conv3x3.conv.weight
    t3, shift3 = inference_scale_shift(block.conv3x3.bn)
    t1, shift1 = inference_scale_shift(block.conv1x1.bn)
    kernel = per_output(t3) * w3
    center = t1.view(-1, 1) * block.conv1x1.conv.weight[:, :, 0, 0]
    bias = shift3 + shift1
    if block.identity is not None:
        t0, shift0 = inference_scale_shift(block.identity)
        output_channel = torch.arange(len(t0), device=t0.device)
        center = center.index_put((output_channel, output_channel % center.shape[1]), t0, accumulate=True)
        bias = bias + shift0
    # In place and once, where the small branches land: training makes a kernel at each step.
    kernel[:, :, 1, 1].add_(center)
    return kernel, bias
