"""Rounding to grids whose scales can be learned (LSQ), with gradients passed straight through."""

from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor, nn

from repquant.choices import WeightScales
from repquant.numerics.affine import Grid, Scheme, stored_scale
from repquant.numerics.learned_step import SMALLEST_SCALE, gradient_factor, learned_fake_quantize
from repquant.simulation.integers import smallest_scale, stored_bias, weight_grid

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
        scheme: of the weights; with a channel axis of 1 for a transposed convolution.
        scales: "max" follows the largest magnitudes at each step, "learned" and "fixed" begin with `grid`.
        grid: at the start.

    Attributes:
        enabled: whether it rounds; training can begin without.
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
        rounded_bias = None
        if bias is not None:
            step = input_scale.detach() * grid.scale
            rounded_bias = _round_straight_through(bias, _of_outputs(step, bias), self.scheme)
        scale = self._bounded_scale(bias, input_scale) if self.scales == "learned" else grid.scale
        return self._round(kernel, scale, grid.zero_point), rounded_bias

    def grid(self, kernel: Tensor, bias: Tensor | None, input_scale: Tensor) -> Grid:
        """Return the grid as it is now."""
        if self.scales == "max":
            return weight_grid(kernel, bias, input_scale.detach(), self.scheme)
        scale = self._bounded_scale(bias, input_scale).detach()
        return Grid(scale, torch.zeros_like(scale, dtype=torch.int32), self.scheme)

    def _round(self, kernel: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        factor = gradient_factor(kernel.numel() // scale.numel(), self.scheme)
        if self.scheme.channel_axis != 1:
            return learned_fake_quantize(kernel, scale, zero_point, self.scheme, factor)
        by_output = replace(self.scheme, channel_axis=0)
        return learned_fake_quantize(kernel.transpose(0, 1), scale, zero_point, by_output, factor).transpose(0, 1)

    def _bounded_scale(self, bias: Tensor | None, input_scale: Tensor) -> Tensor:
        """Keep a scale that training moves positive, and large enough for the bias."""
        scale = self.scale.clamp(min=SMALLEST_SCALE)
        scale = torch.maximum(scale, smallest_scale(bias, input_scale.detach(), scale.shape))
        return stored_scale(scale, self.scheme)


def _of_outputs(step: Tensor, bias: Tensor) -> Tensor:
    """Return a step for each output channel; groups of a transposed convolution share them."""
    return step.repeat(len(bias) // len(step)) if step.dim() else step


def _round_straight_through(bias: Tensor, step: Tensor, scheme: Scheme) -> Tensor:
    """Round as `integers.quantize_parameters` does; the gradient is that of the bias."""
    exact = bias.detach().double()
    stored = stored_bias(bias.detach(), scheme).double()
    return bias + (torch.round(stored / step.double()) * step.double() - exact).to(bias.dtype)
