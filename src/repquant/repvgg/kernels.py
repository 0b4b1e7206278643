"""Kernels of RepVGG in quantization-aware training: from the branches, or folded with inserted normalizations."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from repquant.models.blocks import TrainingBlock
from repquant.models.fuse import equivalent_kernel, identity_kernel, scale_shift
from repquant.qat.kernels import KernelSource


class EquivalentKernel(KernelSource):
    """The parameters are those of a block's branches; the kernel is the one that equals them.

    The statistics of the batch normalizations are constants for the gradient.

    Args:
        block: it is copied.
        residual: the network adds the block's input by itself; the kernel is what is missing to the identity.

    Attributes:
        is_refreshing: whether the branches see the input too, once more, and their statistics move.
    """

    def __init__(self, block: TrainingBlock, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.block = copy.deepcopy(block)
        # What stands behind the branches is trained where it stands in the deploy model.
        self.block.se = self.block.post_se = nn.Identity()
        self.is_refreshing = False

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return (kernel, bias)."""
        kernel, bias = equivalent_kernel(self.block)
        if self.residual:
            kernel = kernel - identity_kernel(len(kernel), self.block.spec.groups, kernel.dtype, kernel.device)
        return kernel, bias

    def apply_layer(
        self, layer: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, kernel: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Let the statistics take in the input (N, I, H, W) if they are being refreshed."""
        if self.training and self.is_refreshing:
            with torch.no_grad():
                self.block.branches(x.detach())
        return layer(kernel, bias)


class FoldedKernel(KernelSource):
    """A convolution without bias and the batch normalization behind it, folded with the running statistics."""

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().clone())
        self.bn = bn

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return (kernel, bias)."""
        t, shift = self.scale_shift()
        return self.weight * t.view(-1, 1, 1, 1), shift

    def scale_shift(self) -> tuple[Tensor, Tensor]:
        """Return (t, shift), each (C,), of the batch normalization in inference mode."""
        bn = self.bn
        assert bn.running_mean is not None
        assert bn.running_var is not None
        return scale_shift(bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps)

    def apply_layer(
        self, layer: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, kernel: Tensor, bias: Tensor | None
    ) -> Tensor:
        """While the statistics move, normalize with those of this batch, behind a kernel folded with the running ones.

        The division undoes the folding, so that the normalization sees the convolution that it belongs to, rounded
        (Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018, in the form of torch's
        `ConvBn2d`).
        """
        del x
        if not self.bn.training:
            return layer(kernel, bias)
        t, _ = self.scale_shift()
        y: Tensor = self.bn(layer(kernel, None) / t.view(-1, 1, 1))
        return y
