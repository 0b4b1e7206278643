"""Layers of quantization-aware training: what is rounded is the kernel that will be deployed.

A layer rounds its input and its kernel in the forward pass and passes gradients straight through. Where the kernel
comes from is a module of its own: a tensor, the branches of a training-time block, or a convolution and the batch
normalization behind it.
"""

import copy
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repquant.models.blocks import TrainingBlock
from repquant.models.fuse import equivalent_kernel, identity_kernel, scale_shift
from repquant.numerics.affine import Grid, Scheme, stored_scale
from repquant.numerics.learned_step import SMALLEST_SCALE, gradient_factor, learned_fake_quantize
from repquant.simulation.integers import smallest_scale, stored_bias, weight_grid

WeightScales = Literal["max", "learned", "fixed"]
WEIGHT_SCALES: tuple[WeightScales, ...] = get_args(WeightScales)


class ActivationQuantizer(nn.Module):
    """Round a tensor to a grid with one scale, fixed or learned (LSQ).

    Attributes:
        enabled: whether it rounds; training can begin without.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, grid: Grid, learned: bool) -> None:
        super().__init__()
        self.scheme = grid.scheme
        self.enabled = True
        scale = grid.scale.detach().clone()
        if learned:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)
        self.register_buffer("zero_point", grid.zero_point.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` rounded to the grid, same shape."""
        if not self.enabled:
            return _with_gradient(x, self.scale)
        factor = gradient_factor(x[0].numel(), self.scheme)
        scale = stored_scale(self.scale, self.scheme)
        return learned_fake_quantize(x.float(), scale, self.zero_point, self.scheme, factor)

    def grid(self) -> Grid:
        """Return the grid as it is now."""
        scale = stored_scale(self.scale.detach().clamp(min=SMALLEST_SCALE), self.scheme)
        return Grid(scale, self.zero_point, self.scheme)


def _with_gradient(x: Tensor, scale: Tensor) -> Tensor:
    """Give a learned scale that is not in use a gradient of 0: distributed training waits for every gradient."""
    return x + 0 * scale.sum() if scale.requires_grad else x


class WeightQuantizer(nn.Module):
    """Round a kernel to a grid of its own.

    Args:
        scheme: of the weights.
        scales: "max" follows the largest magnitudes at each step, "learned" and "fixed" begin with `grid`.
        grid: at the start.
    """

    scale: Tensor

    def __init__(self, scheme: Scheme, scales: WeightScales, grid: Grid) -> None:
        super().__init__()
        self.scheme = scheme
        self.scales = scales
        self.enabled = True
        if scales == "learned":
            self.scale = nn.Parameter(grid.scale.detach().clone())
        elif scales == "fixed":
            self.register_buffer("scale", grid.scale.detach().clone())

    def forward(self, kernel: Tensor, bias: Tensor | None, input_scale: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the kernel (O, ...) and the bias (O,) rounded, for the scale () of the layer's input.

        The bias is served as an int32 in steps of the input's scale times the kernel's.
        """
        if not self.enabled:
            return _with_gradient(kernel, self.scale) if self.scales == "learned" else kernel, bias
        grid = self.grid(kernel, bias, input_scale)
        step = input_scale.detach() * grid.scale
        rounded_bias = None if bias is None else _round_straight_through(bias, step, self.scheme)
        scale = self._bounded_scale(bias, input_scale) if self.scales == "learned" else grid.scale
        factor = gradient_factor(kernel.numel() // scale.numel(), self.scheme)
        return learned_fake_quantize(kernel, scale, grid.zero_point, self.scheme, factor), rounded_bias

    def grid(self, kernel: Tensor, bias: Tensor | None, input_scale: Tensor) -> Grid:
        """Return the grid as it is now."""
        if self.scales == "max":
            return weight_grid(kernel, bias, input_scale.detach(), self.scheme)
        scale = self._bounded_scale(bias, input_scale).detach()
        return Grid(scale, _zeros(scale), self.scheme)

    def _bounded_scale(self, bias: Tensor | None, input_scale: Tensor) -> Tensor:
        """Keep a scale that training moves positive, and large enough for the bias."""
        scale = self.scale.clamp(min=SMALLEST_SCALE)
        if bias is not None:
            scale = torch.maximum(scale, smallest_scale(bias, input_scale.detach(), self.scheme))
        return stored_scale(scale, self.scheme)


def _round_straight_through(bias: Tensor, step: Tensor, scheme: Scheme) -> Tensor:
    """Round as `integers.quantize_parameters` does; the gradient is that of the bias."""
    exact = bias.detach().double()
    stored = stored_bias(bias.detach(), scheme).double()
    return bias + (torch.round(stored / step.double()) * step.double() - exact).to(bias.dtype)


def _zeros(scale: Tensor) -> Tensor:
    return torch.zeros_like(scale, dtype=torch.int32)


class PlainKernel(nn.Module):
    """The kernel and bias of a deploy layer are the parameters."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())

    def forward(self) -> tuple[Tensor, Tensor | None]:
        """Return (kernel, bias)."""
        return self.weight, self.bias


class EquivalentKernel(nn.Module):
    """The parameters are those of a block's branches; the kernel is the one that equals them.

    The statistics of the batch normalizations are constants for the gradient.

    Args:
        block: it is copied.
        residual: the deploy model adds the block's input by itself; the kernel is what is missing to the identity.

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

    @torch.no_grad()
    def refresh(self, x: Tensor) -> None:
        """Let the statistics take in the input (N, I, H, W)."""
        self.block.branches(x)


class FoldedKernel(nn.Module):
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


KernelSource = PlainKernel | EquivalentKernel | FoldedKernel


class QatLayer(nn.Module):
    """A convolution or linear layer of a network in quantization-aware training.

    Args:
        layer: the deploy layer, for its geometry.
        source: where kernel and bias come from.
        input: rounds the input.
        weight: rounds the kernel.
    """

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        source: KernelSource,
        input: ActivationQuantizer,
        weight: WeightQuantizer,
    ) -> None:
        super().__init__()
        self.source = source
        self.input = input
        self.weight = weight
        self.is_linear = isinstance(layer, nn.Linear)
        if isinstance(layer, nn.Conv2d):
            assert layer.padding_mode == "zeros"
            self.geometry = {
                "stride": layer.stride,
                "padding": layer.padding,
                "dilation": layer.dilation,
                "groups": layer.groups,
            }

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, ...) to (N, O, ...)."""
        x = self.input(x)
        if isinstance(self.source, EquivalentKernel) and self.training and self.source.is_refreshing:
            self.source.refresh(x.detach())
        kernel, bias = self.source()
        rounded, rounded_bias = self.weight(kernel, bias, self.input.grid().scale)
        if isinstance(self.source, FoldedKernel) and self.source.bn.training:
            return self._normalize(x, rounded)
        return self._convolve(x, rounded, rounded_bias)

    @torch.no_grad()
    def kernel_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """Return kernel and bias as they are before rounding."""
        kernel, bias = self.source()
        return kernel, bias

    @torch.no_grad()
    def weight_grid(self) -> Grid:
        """Return the grid that the kernel is rounded to."""
        return self.weight.grid(*self.kernel_and_bias(), self.input.grid().scale)

    def _normalize(self, x: Tensor, rounded: Tensor) -> Tensor:
        """Batch normalization with the statistics of this batch, behind a kernel that was folded with the running ones.

        The division undoes the folding, so that the normalization sees the convolution that it belongs to, rounded
        (Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018, in the form of torch's
        `ConvBn2d`).
        """
        assert isinstance(self.source, FoldedKernel)
        t, _ = self.source.scale_shift()
        y: Tensor = self.source.bn(self._convolve(x, rounded, None) / t.view(-1, 1, 1))
        return y

    def _convolve(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        if self.is_linear:
            return F.linear(x, kernel, bias)
        return F.conv2d(x, kernel, bias, **self.geometry)  # type: ignore[arg-type]


class QatInput(nn.Module):
    """A module without weights of its own behind a rounded input."""

    def __init__(self, module: nn.Module, input: ActivationQuantizer) -> None:
        super().__init__()
        self.input = input
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to the rounded input."""
        y: Tensor = self.module(self.input(x))
        return y
