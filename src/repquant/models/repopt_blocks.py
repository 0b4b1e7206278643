"""The blocks of RepOpt-VGG: branches with trained scales for the hyper-search, one convolution for the target network.

`repquant.models.repopt` says what they are for.
"""

from math import sqrt

import torch
from torch import Tensor, nn

from repquant.errors import InputError
from repquant.models.blocks import TrainingBlock, post_squeeze_excite, squeeze_excite
from repquant.models.fuse import equivalent_kernel, identity_kernel, inference_scale_shift, pad_pointwise, per_output
from repquant.models.spec import BlockSpec


class ChannelScale(nn.Module):
    """Multiply each channel by a factor.

    Args:
        channels: how many.
        initial: value of all factors.
        trained: a parameter if true, else a buffer.
    """

    weight: Tensor

    def __init__(self, channels: int, initial: float, *, trained: bool) -> None:
        super().__init__()
        factors = torch.full((channels,), initial)
        if trained:
            self.weight = nn.Parameter(factors)
        else:
            self.register_buffer("weight", factors)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x * self.weight.view(-1, 1, 1)


class RepOptSearchBlock(TrainingBlock):
    """Hyper-search: branches bn(s3 * conv3x3(x) + s1 * conv1x1(x) + s0 * x) with trained scales (O,)."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        _require_no_groups(spec)
        self.spec = spec
        channels = spec.out_channels
        self.conv3x3 = _convolution(spec, 3)
        self.scale3x3 = ChannelScale(channels, initial_scale(spec.position), trained=True)
        self.conv1x1 = _convolution(spec, 1)
        self.scale1x1 = ChannelScale(channels, initial_scale(spec.position), trained=True)
        self.scale_identity = ChannelScale(channels, 1.0, trained=True) if spec.has_identity else None
        self.bn = nn.BatchNorm2d(channels)
        self.se = squeeze_excite(spec)
        self.relu = nn.ReLU()
        self.post_se = post_squeeze_excite(spec)

    def branches(self, x: Tensor) -> Tensor:
        """Normalize the sum of the scaled branches."""
        total = self.scale3x3(self.conv3x3(x)) + self.scale1x1(self.conv1x1(x))
        if self.scale_identity is not None:
            total = total + self.scale_identity(x)
        normalized: Tensor = self.bn(total)
        return normalized


class RepOptBlock(TrainingBlock):
    """Target: bn(conv3x3(x)), and as buffers the scales (O,) that its gradient multipliers are made of.

    A new block has the scales with which a hyper-search begins, and the kernel that belongs to them.
    """

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        _require_no_groups(spec)
        self.spec = spec
        channels = spec.out_channels
        self.conv3x3 = _convolution(spec, 3)
        self.scale3x3 = ChannelScale(channels, initial_scale(spec.position), trained=False)
        self.scale1x1 = ChannelScale(channels, initial_scale(spec.position), trained=False)
        self.bn = nn.BatchNorm2d(channels)
        self.se = squeeze_excite(spec)
        self.relu = nn.ReLU()
        self.post_se = post_squeeze_excite(spec)
        self.draw_kernel(torch.ones(channels) if spec.has_identity else None)

    @torch.no_grad()
    def draw_kernel(self, s0: Tensor | None) -> None:
        """Set the kernel to that of branches with fresh kernels, the block's scales, and s0 (O,) of the identity."""
        self.conv3x3.reset_parameters()
        kernel = scaled_kernel(
            self.conv3x3.weight,
            _convolution(self.spec, 1).weight,
            self.scale3x3.weight,
            self.scale1x1.weight,
            s0,
        )
        self.conv3x3.weight.copy_(kernel)

    def branches(self, x: Tensor) -> Tensor:
        """Normalize the convolution."""
        normalized: Tensor = self.bn(self.conv3x3(x))
        return normalized


@equivalent_kernel.register
def _(block: RepOptSearchBlock) -> tuple[Tensor, Tensor]:
    identity = None if block.scale_identity is None else block.scale_identity.weight
    kernel = scaled_kernel(
        block.conv3x3.weight, block.conv1x1.weight, block.scale3x3.weight, block.scale1x1.weight, identity
    )
    t, shift = inference_scale_shift(block.bn)
    return per_output(t) * kernel, shift


@equivalent_kernel.register
def _(block: RepOptBlock) -> tuple[Tensor, Tensor]:
    t, shift = inference_scale_shift(block.bn)
    return per_output(t) * block.conv3x3.weight, shift


def initial_scale(position: int) -> float:
    """Return the scale of the 3x3 and 1x1 branches with which a hyper-search begins.

    It is sqrt(2 / i) for block i behind the first of a stage, so that the identity grows with depth as it does with
    batch normalization in every branch, and 1 for the first, which has no identity.
    """
    return sqrt(2 / position) if position else 1.0


def scaled_kernel(w3: Tensor, w1: Tensor, s3: Tensor, s1: Tensor, s0: Tensor | None) -> Tensor:
    """Return s3 * W3 + pad(s1 * W1) + s0 * I (O, I, 3, 3).

    Args:
        w3: (O, I, 3, 3).
        w1: (O, I, 1, 1).
        s3: (O,).
        s1: (O,).
        s0: (O,), None without identity branch.
    """
    kernel = per_output(s3) * w3 + pad_pointwise(per_output(s1) * w1)
    if s0 is None:
        return kernel
    return kernel + per_output(s0) * identity_kernel(len(w3), 1, w3.dtype, w3.device)


def _convolution(spec: BlockSpec, kernel_size: int) -> nn.Conv2d:
    return nn.Conv2d(
        spec.in_channels, spec.out_channels, kernel_size, stride=spec.stride, padding=kernel_size // 2, bias=False
    )


def _require_no_groups(spec: BlockSpec) -> None:
    if spec.groups != 1:
        raise InputError(f"RepOptimizer has no grouped convolutions, and a block has {spec.groups} groups; use 1")
