"""Which range of a layer's weights loses least: the error of rounding against that of clipping.

With few bits it pays to clip the largest weights, so that all others have a finer step. The search over shrunk ranges
is that of BRECQ (Li et al., ICLR 2021), with the plain squared error.
"""

import torch
from torch import Tensor

from repquant.numerics.affine import Grid, Scheme, channel_range, fake_quantize, grid_for_range

_CANDIDATES = 64  # ranges that are tried for each channel


def least_squares_amax(weight: Tensor, at_least: Tensor, scheme: Scheme) -> Tensor:
    """Return the amax with the least squared error of the weights on its grid, (C,) or (), in float64.

    Tried are even fractions of the largest magnitude, itself included; of equals the largest wins, so that nothing is
    clipped for nothing.

    Args:
        weight: float32 weights; all channels are searched at once.
        at_least: (C,) along the scheme's channel axis, or (): no smaller amax is returned, whatever the error.
        scheme: signed symmetric scheme of the weights.
    """
    low, high = channel_range(weight, scheme)
    smallest = at_least.double()
    largest = torch.maximum(torch.maximum(-low, high).double(), smallest)
    best, least = largest, _squared_error(weight, grid_for_range(-largest, largest, scheme))
    for step in range(_CANDIDATES - 1, 0, -1):
        amax = torch.maximum(largest * (step / _CANDIDATES), smallest)
        error = _squared_error(weight, grid_for_range(-amax, amax, scheme))
        best, least = torch.where(error < least, amax, best), torch.minimum(error, least)
    return best


def _squared_error(weight: Tensor, grid: Grid) -> Tensor:
    squares = (fake_quantize(weight, grid) - weight).square_()
    axis = grid.scheme.channel_axis
    return squares.sum() if axis is None else squares.movedim(axis, 0).flatten(1).sum(1)
