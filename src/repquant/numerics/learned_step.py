"""Learned step size quantization (LSQ): the scale of a grid is a parameter with a gradient of its own.

Esser et al., "Learned Step Size Quantization", ICLR 2020. With v = x / s, the gradient of s * round(clip(v)) with
respect to s is round(v) - v where v lies inside the grid and the grid's end where it is clipped.
"""

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from repquant.numerics.affine import Grid, Scheme, fake_quantize

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
        y = fake_quantize(x, Grid(scale, zero_point, scheme))
        ctx.save_for_backward(x, y, scale, zero_point)
        ctx.scheme, ctx.factor = scheme, factor
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        x, y, scale, zero_point = ctx.saved_tensors
        axis = ctx.scheme.channel_axis
        low, high = scale * (ctx.scheme.qmin - zero_point), scale * (ctx.scheme.qmax - zero_point)
        if axis is not None:
            shape = [1] * x.dim()
            shape[axis] = -1
            low, high = low.reshape(shape), high.reshape(shape)
        through = gradient * ((x >= low) & (x <= high))
        if not ctx.needs_input_grad[1]:
            return through, None, None, None, None
        # Inside the grid y / s - x / s, outside y / s: no third tensor of the size of x is made.
        if axis is None:
            total = torch.dot(gradient.flatten(), y.flatten()) - torch.dot(through.flatten(), x.flatten())
        else:
            others = [dim for dim in range(x.dim()) if dim != axis]
            total = (gradient * y - through * x).sum(others)
        return through, total / scale * ctx.factor, None, None, None
