"""Learned step size quantization (LSQ): the scale of a grid is a parameter with a gradient of its own.

Esser et al., "Learned Step Size Quantization", ICLR 2020. With v = x / s, the gradient of s * round(clip(v)) with
respect to s is round(v) - v where v lies inside the grid and the grid's end where it is clipped.
"""

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from repquant.numerics.affine import Grid, Scheme, along_axis

SMALLEST_SCALE = 1e-12
"""Scales are kept at or above this."""


def gradient_factor(elements: int, scheme: Scheme) -> float:
    """Return 1 / sqrt(N * Qp), which puts the updates of scales on the footing of those of weights.

    Args:
        elements: N, weights with a common scale, or values of a feature map of one image.
        scheme: its largest integer is Qp.
    """
    return 1 / sqrt(max(elements, 1) * scheme.qmax)


def learned_fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme, factor: float) -> Tensor:
    """Round `x` to a grid and return it in float, equal to `affine.fake_quantize` bit for bit.

    The gradient of `x` is straight-through inside the grid and 0 where it is clipped; that of `scale` is LSQ's.

    Args:
        x: any shape, float32.
        scale: positive, () or (C,) along the scheme's channel axis, float32.
        zero_point: int32, same shape; it is not learned.
        scheme: the integer grid.
        factor: of the scale's gradient, see `gradient_factor`.
    """
    y: Tensor = _LearnedFakeQuantize.apply(x, scale.clamp(min=SMALLEST_SCALE), zero_point, scheme, factor)
    return y


class _LearnedFakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme, factor: float) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.scheme, ctx.factor = scheme, factor
        return _rounded(x, Grid(scale, zero_point, scheme))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        x, scale, zero_point = ctx.saved_tensors
        grid = Grid(scale, zero_point, ctx.scheme)
        low, high = (along_axis(scale, x, ctx.scheme.channel_axis) * end for end in _ends(x, grid))
        inside = (x >= low).logical_and_(x <= high).to(x.dtype)
        through = gradient * inside
        if not ctx.needs_input_grad[1]:
            return through, None, None, None, None
        # Inside the grid y - x, outside y; the difference first, because the sums would cancel.
        errors = _rounded(x, grid).addcmul_(x, inside, value=-1)
        axis = ctx.scheme.channel_axis
        if axis is None:
            total = torch.dot(gradient.flatten(), errors.flatten())
        else:
            total = (gradient * errors).sum([dim for dim in range(x.dim()) if dim != axis])
        return through, total / scale * ctx.factor, None, None, None


def _rounded(x: Tensor, grid: Grid) -> Tensor:
    """`affine.fake_quantize` without a gradient: the same bits, and no mask as torch's kernels make for theirs."""
    low, high = _ends(x, grid)
    steps = grid.step_counts(x).round_()
    return steps.clamp_(low, high).mul_(along_axis(grid.scale, x, grid.scheme.channel_axis))


def _ends(x: Tensor, grid: Grid) -> tuple[Any, Any]:
    """Return the smallest and largest number of steps from zero: numbers, or tensors along the channel axis."""
    scheme = grid.scheme
    if scheme.symmetric:
        return scheme.qmin, scheme.qmax
    zero_point = along_axis(grid.zero_point, x, scheme.channel_axis).to(x.dtype)
    return scheme.qmin - zero_point, scheme.qmax - zero_point
