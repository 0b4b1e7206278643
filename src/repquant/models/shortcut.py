"""The identity branch set apart from the equivalent kernel, so that each can have a quantization grid of its own.

In a fused block the identity lies on the center of the kernel's diagonal, W[i, i mod (C/g), 1, 1], many times larger
than the other weights, and takes the int8 grid for itself. Here W = R + S: the convolution keeps the remainder R, the
shortcut computes S.

- "depthwise": S is the diagonal center, a 1x1 depthwise convolution; R is zero there.
- "residual": S is the identity, a plain addition; the diagonal center of R keeps what is missing to it. That is small
  where channel scales have brought the diagonal near 1 (`repquant.quant.equalize`).
- "coarse-fine": S is the whole center of the kernel rounded to the grid of the weights, a 1x1 convolution; R has
  the rounding error in its center (coarse and fine weight splitting, CFWS).
"""

import copy
from typing import Any, TypeVar

import torch
from torch import nn

from repquant.models.blocks import DeployBlock, ShortcutBlock, ShortcutKind
from repquant.models.fuse import identity_kernel
from repquant.numerics.affine import Scheme
from repquant.numerics.diagonal import diagonal_center

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_INT8 = Scheme(narrow=True, channel_axis=0)


def split_identity(model: ModuleT, kind: ShortcutKind, scheme: Scheme = _INT8) -> ModuleT:
    """Return a copy of a deploy model in which every block with an identity branch has a shortcut.

    The copy computes the same up to rounding. Blocks without identity branch, and all other modules, are copied as they
    are.

    Args:
        model: deploy model; it is not changed.
        kind: of the shortcut.
        scheme: of the weights, for "coarse-fine": the grid that the coarse part lies on.
    """
    memo: dict[int, Any] = {
        id(block): _split(block, kind, scheme)
        for block in model.modules()
        if isinstance(block, DeployBlock) and block.spec.has_identity
    }
    return copy.deepcopy(model, memo)


def merge_residuals(model: ModuleT) -> ModuleT:
    """Return a copy in which every block with a shortcut of kind "residual" is the fused one that computes the same."""
    memo: dict[int, Any] = {
        id(block): _merged(block)
        for block in model.modules()
        if isinstance(block, ShortcutBlock) and block.kind == "residual"
    }
    return copy.deepcopy(model, memo)


def count_identities(model: nn.Module) -> int:
    """Return how many fused blocks have an identity branch in their kernel."""
    return sum(isinstance(block, DeployBlock) and block.spec.has_identity for block in model.modules())


@torch.no_grad()
def _merged(block: ShortcutBlock) -> DeployBlock:
    merged = DeployBlock(block.spec)
    kernel = block.conv.weight
    merged.conv.weight.copy_(kernel + identity_kernel(len(kernel), block.spec.groups, kernel.dtype, kernel.device))
    assert block.conv.bias is not None
    assert merged.conv.bias is not None
    merged.conv.bias.copy_(block.conv.bias)
    merged.se = copy.deepcopy(block.se)
    merged.post_se = copy.deepcopy(block.post_se)
    return merged.train(block.training)


@torch.no_grad()
def _split(block: DeployBlock, kind: ShortcutKind, scheme: Scheme) -> ShortcutBlock:
    split = ShortcutBlock(block.spec, kind)
    kernel = block.conv.weight
    remainder = kernel.clone()
    if kind == "coarse-fine":
        assert isinstance(split.shortcut, nn.Conv2d)
        center = kernel[:, :, 1:2, 1:2]
        largest = center.abs().amax((1, 2, 3), keepdim=True)
        step = (largest if scheme.channel_axis is not None else largest.max()) / scheme.qmax
        coarse = torch.round(center / step.clamp(min=torch.finfo(step.dtype).tiny)) * step
        split.shortcut.weight = nn.Parameter(coarse)
        remainder[:, :, 1:2, 1:2] -= coarse
    else:
        factor = diagonal_center(kernel, block.spec.groups).clone()
        if kind == "residual":
            factor.fill_(1.0)
        else:
            assert isinstance(split.shortcut, nn.Conv2d)
            split.shortcut.weight = nn.Parameter(factor.reshape(-1, 1, 1, 1))
        identity = identity_kernel(len(kernel), block.spec.groups, kernel.dtype, kernel.device)
        remainder -= factor.reshape(-1, 1, 1, 1) * identity
    split.conv.weight = nn.Parameter(remainder)
    assert block.conv.bias is not None
    split.conv.bias = nn.Parameter(block.conv.bias.clone())
    split.se = copy.deepcopy(block.se)
    split.post_se = copy.deepcopy(block.post_se)
    return split.train(block.training)
