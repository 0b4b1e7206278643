"""How far the largest weights of a layer stand out: they set the step of an integer grid, and all others pay for it."""

import torch
from torch import Tensor


def range_over_sigma(weight: Tensor) -> Tensor:
    """Return max |w| of each output channel over the standard deviation of the channel's other weights.

    Args:
        weight: (O, ...).

    Returns:
        One ratio for each channel whose other weights differ from each other, at most (O,), in float64.
    """
    flat = weight.detach().double().flatten(1)
    largest, position = flat.abs().max(1)
    is_other = torch.ones_like(flat, dtype=torch.bool).scatter_(1, position[:, None], value=False)
    others = flat[is_other].reshape(len(flat), -1)
    if others.shape[1] == 0:
        return largest[:0]
    varies = others.amax(1) > others.amin(1)
    sigma = (others - others.mean(1, keepdim=True)).square().mean(1).sqrt()
    return largest[varies] / sigma[varies]


def diagonal_dominance(weight: Tensor, mask: Tensor) -> tuple[float, float | None]:
    """Return how much of a layer is ruled by its diagonal.

    Args:
        weight: (C, I, 3, 3).
        mask: same shape, one place in each output channel.

    Returns:
        The share of output channels whose largest |w| is the diagonal, 0 to 1, and the median over channels of
        |diagonal| / largest other |w|; None where all others are zero.
    """
    magnitude = weight.detach().double().abs()
    diagonal = magnitude[mask]
    others = magnitude.masked_fill(mask, 0).flatten(1).amax(1)
    ratios = (diagonal / others)[others > 0]
    share = float((diagonal > others).double().mean())
    return share, float(ratios.quantile(0.5)) if len(ratios) else None
