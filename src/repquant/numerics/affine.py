"""Affine (uniform) quantization: real = (q - zero_point) * scale, with q an integer in [qmin, qmax].

Rounding is half to even, as in ONNX QuantizeLinear and in torch's fake quantization (Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from repquant.choices import ScaleType
from repquant.errors import InputError

INT32_MAX = 2**31 - 1
_SMALLEST_HALF = 2.0**-24
_DEAD_AMAX = 1.0  # a range of zeros holds nothing to resolve; any positive scale represents it exactly


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """An integer grid, before a range gives it its scale.

    Args:
        bits: width of the integers, 2 to 8.
        signed: two's complement integers, else unsigned.
        symmetric: zero point fixed at 0. An unsigned symmetric grid holds only values >= 0.
        channel_axis: axis with a scale of its own for each index, or None for one scale per tensor.
        narrow: leave out the most negative integer, so that a signed grid is its own mirror image.
        scale_type: what the scale is stored as. Scales have its precision before anything is rounded with them.

    Raises:
        InputError: bits out of range, or a narrow unsigned grid.
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    channel_axis: int | None = None
    narrow: bool = False
    scale_type: ScaleType = "float32"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise InputError(f"a grid of {self.bits} bits was asked for; allowed are 2 to 8")
        if self.narrow and not self.signed:
            raise InputError("a narrow range leaves out the most negative integer: it needs a signed grid")

    @property
    def qmin(self) -> int:
        """Smallest integer of the grid."""
        return -(1 << (self.bits - 1)) + int(self.narrow) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Largest integer of the grid."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1


@dataclass(frozen=True)
class Grid:
    """A scheme with its scale (float32) and zero point (int32): scalars, or one entry per channel."""

    scale: Tensor
    zero_point: Tensor
    scheme: Scheme

    def step_counts(self, x: Tensor) -> Tensor:
        """Return x in units of the step, before rounding and clipping."""
        return x * _along_axis(1.0 / self.scale, x, self.scheme.channel_axis)


def grid_for_range(low: Tensor | float, high: Tensor | float, scheme: Scheme) -> Grid:
    """Return the grid whose ends represent the range [low, high], which is widened to contain 0.

    Args:
        low: smallest value to represent, a scalar or (C,) along the scheme's channel axis.
        high: largest value to represent, same shape.
        scheme: the integer grid.

    Raises:
        InputError: a range that is not finite or is upside down, negative values on an unsigned symmetric grid, or a
            scale that its type can't hold.
    """
    low, high = torch.as_tensor(low, dtype=torch.float64), torch.as_tensor(high, dtype=torch.float64)
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise InputError("a quantization range is NaN or infinite; check the weights and the calibration images")
    if (low > high).any():
        raise InputError("a quantization range has its lower end above its upper end")
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    if scheme.symmetric:
        if not scheme.signed and (low < 0).any():
            raise InputError("an unsigned symmetric grid can't hold negative values; use an asymmetric scheme")
        extent = torch.maximum(high, -low)
        steps = scheme.qmax
    else:
        extent = high - low
        steps = scheme.qmax - scheme.qmin
    extent = torch.where(extent > 0, extent, torch.full_like(extent, _DEAD_AMAX))
    scale = (extent / steps).to(torch.float32).clamp(min=torch.finfo(torch.float32).tiny)
    scale = stored_scale(scale, scheme)
    if scheme.symmetric:
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
    else:
        zero_point = torch.round(scheme.qmin - low / scale).clamp(scheme.qmin, scheme.qmax).to(torch.int32)
    return Grid(scale, zero_point, scheme)


def stored_scale(scale: Tensor, scheme: Scheme) -> Tensor:
    """Return a float32 scale as the scheme stores it, positive; its gradient is handed on to `scale`.

    Raises:
        InputError: a scale that is too large for FP16.
    """
    if scheme.scale_type == "float32":
        return scale
    stored = scale.detach().to(torch.float16).to(torch.float32).clamp(min=_SMALLEST_HALF)
    if torch.isinf(stored).any():
        raise InputError(f"a scale of {float(scale.max()):.3g} does not fit FP16; store the scales as float32")
    return stored * (scale / scale.detach())  # exactly what is stored: the quotient is 1


def channel_range(weight: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest value of `weight`: (C,) each along the channel axis, or scalars."""
    if scheme.channel_axis is None:
        return weight.amin(), weight.amax()
    flat = weight.movedim(scheme.channel_axis, 0).reshape(weight.shape[scheme.channel_axis], -1)
    return flat.amin(1), flat.amax(1)


def to_integers(x: Tensor, grid: Grid) -> Tensor:
    """Return the integers of `x` on `grid`, as int32 of the same shape.

    The step count is x times the float32 reciprocal of the scale, as torch computes it, so that the integers are those
    of `fake_quantize` bit for bit.
    """
    scheme = grid.scheme
    zero_point = _along_axis(grid.zero_point, x, scheme.channel_axis)
    return (torch.round(grid.step_counts(x)) + zero_point).clamp(scheme.qmin, scheme.qmax).to(torch.int32)


def dequantize(q: Tensor, grid: Grid) -> Tensor:
    """Return the float32 values of integers on `grid`."""
    axis = grid.scheme.channel_axis
    return (q - _along_axis(grid.zero_point, q, axis)).to(torch.float32) * _along_axis(grid.scale, q, axis)


def fake_quantize(x: Tensor, grid: Grid) -> Tensor:
    """Round `x` to `grid` and return it in float.

    The gradient is the straight-through estimator: 1 inside the range, 0 where `x` is clipped (Bengio et al., 2013).
    """
    scheme = grid.scheme
    if scheme.channel_axis is None:
        return torch.fake_quantize_per_tensor_affine(x, grid.scale, grid.zero_point, scheme.qmin, scheme.qmax)
    return torch.fake_quantize_per_channel_affine(
        x, grid.scale, grid.zero_point, scheme.channel_axis, scheme.qmin, scheme.qmax
    )


def _along_axis(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        return values
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)
