"""Learned step size quantization (LSQ): the scale of a grid is a parameter with a gradient of its own.

Esser et al., "Learned Step Size Quantization", ICLR 2020. With v = x / s, the gradient of s * round(clip(v)) with
respect to s is round(v) - v where v lies inside the grid and the grid's end where it is clipped.
"""

from collections.abc import Iterator
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from repquant.numerics.affine import Scheme

SMALLEST_SCALE = 1e-12
"""Scales are kept at or above this."""

_MARGIN = 1e-3
"""Steps beyond an end that still count as on the grid: the largest weight of a channel sets the scale, and divided by
it is often 127 and a last bit more."""

_PART = 1 << 20
"""Values in a part: 4 MiB in float32. Smaller ones fit nearer caches, and cost more calls than they save."""


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
        scale: positive, () or (C,) along the scheme's channel axis, which is the first; float32.
        zero_point: int32, same shape; it is not learned.
        scheme: the integer grid.
        factor: of the scale's gradient, see `gradient_factor`.
    """
    y: Tensor = _LearnedFakeQuantize.apply(x, scale.clamp(min=SMALLEST_SCALE), zero_point, scheme, factor)
    return y


class _LearnedFakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme, factor: float) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        low, high = _ends(x, zero_point, scheme)
        for source, step, target in _parts(scheme, scale, x, y):
            torch.mul(source, 1.0 / step, out=target).round_().clamp_(low, high).mul_(step)
        # A layer keeps both for its own backward pass too: the result is its input.
        ctx.save_for_backward(x, y, scale, zero_point)
        ctx.scheme, ctx.factor = scheme, factor
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        x, y, scale, zero_point = ctx.saved_tensors
        gradient = gradient.contiguous()
        through = torch.empty_like(gradient)
        low, high = _ends(x, zero_point, ctx.scheme)
        totals = []
        for source, step, rounded, of_y, of_x in _parts(ctx.scheme, scale, x, y, gradient, through):
            _straight_through(of_y, source, step, low, high, out=of_x)
            if ctx.needs_input_grad[1]:
                # Rounding errors inside the grid, and its ends outside; by themselves, because their sum would cancel.
                total = _sum(of_x, rounded - source) + _sum(of_y - of_x, rounded)
                totals.append(total / step.view(total.shape))
        if not totals:
            return through, None, None, None, None
        total = torch.stack(totals).sum() if ctx.scheme.channel_axis is None else torch.cat(totals)
        return through, total * ctx.factor, None, None, None


def _parts(scheme: Scheme, scale: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Return matching parts of contiguous tensors of one shape, small enough for a cache, behind the first its scale.

    Passes over a part come from the cache, not from memory: half of the time on the CPU. With a channel axis a part is
    a matrix of some channels' rows. On a device there is one part.
    """
    axis = scheme.channel_axis
    largest = _PART if scale.device.type == "cpu" else max(1, tensors[0].numel())
    if axis is None:
        for first, *others in zip(*(tensor.view(-1).split(largest) for tensor in tensors), strict=True):
            yield first, scale, *others
        return
    assert axis == 0, "a scale for each output channel of a kernel"
    rows = [tensor.view(len(tensor), -1) for tensor in tensors]
    count = max(1, largest // max(1, rows[0].shape[1]))
    for steps, first, *others in zip(
        scale.view(-1, 1).split(count), *(matrix.split(count) for matrix in rows), strict=True
    ):
        yield first, steps, *others


def _ends(x: Tensor, zero_point: Tensor, scheme: Scheme) -> tuple[Any, Any]:
    """Return the smallest and largest number of steps from zero: numbers, but for a tensor that is on a device."""
    if scheme.symmetric:
        return scheme.qmin, scheme.qmax
    offset = float(zero_point) if x.device.type == "cpu" else zero_point.to(x.dtype)
    return scheme.qmin - offset, scheme.qmax - offset


def _straight_through(gradient: Tensor, x: Tensor, step: Tensor, low: Any, high: Any, out: Tensor) -> None:
    """Write the gradient where `x` lies on the grid, its ends included, and 0 elsewhere."""
    if isinstance(low, Tensor):
        steps = x * (1.0 / step)
        torch.mul(gradient, (steps >= low - _MARGIN).logical_and_(steps <= high + _MARGIN), out=out)
        return
    # One number is taken to the ends of the grid, which spares a pass over x.
    is_number = step.dim() == 0 and step.device.type == "cpu"
    values, unit = (x, float(step)) if is_number else (x * (1.0 / step), 1.0)
    least, largest = (low - _MARGIN) * unit, (high + _MARGIN) * unit
    # One pass for two comparisons and a product.
    torch.ops.aten.hardtanh_backward.grad_input(gradient, values, least, largest, grad_input=out)


def _sum(first: Tensor, second: Tensor) -> Tensor:
    """Return the sum of products, for vectors; for matrices that of each row."""
    return torch.dot(first, second) if first.dim() == 1 else torch.linalg.vecdot(first, second)
