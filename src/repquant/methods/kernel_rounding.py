"""Rounding the kernels of a layer with error feedback, on the steps with which they lose least."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from repquant.methods.layer_positions import kernel_rows, of_rows, sums_of_rows
from repquant.numerics.affine import Grid, Scheme, stored_scale
from repquant.numerics.feedback_rounding import FeedbackRounding

SHARES = (1.0, 0.85, 0.7, 0.55, 0.4)
"""Of the range of the weights, that a scale is chosen from."""


def round_kernels(layer: nn.Module, grid: Grid, moments: Tensor, smallest: Tensor) -> tuple[list[Tensor], Grid]:
    """Return the integers of a layer's `kernel_rows`, and the grid with the steps that lose least.

    With a range that ends below the largest weights, what is clipped loses more and everything else less. Which wins is
    seen in the outputs, for inputs with these moments, after the feedback has made up for what it can; of the weights
    alone it can't be told (see `methods.weight_grids`). Each scale is chosen from a few shares of the range.

    Weights of 8 bits keep the whole of it, see `keeps_range`.

    Args:
        layer: in float.
        grid: with the largest steps.
        moments: (G, K, K), of the inputs of each group.
        smallest: steps that no step goes below, of the shape of the grid's scale.
    """
    kernels, roundings = kernel_rows(layer, len(moments)), [FeedbackRounding(part) for part in moments]
    integers = [torch.zeros_like(kernel) for kernel in kernels]
    scale, least = grid.scale, torch.full_like(grid.scale, torch.inf, dtype=torch.float64)
    for share in (1.0,) if keeps_range(grid.scheme) else SHARES:
        tried = stored_scale(torch.maximum(grid.scale * share, smallest), grid.scheme)
        found = [
            rounding.round(kernel, steps, grid.scheme.qmin, grid.scheme.qmax)
            for rounding, kernel, steps in zip(roundings, kernels, of_rows(layer, tried, len(kernels)), strict=True)
        ]
        losses = sums_of_rows(layer, [losses for _, losses in found], scale.shape)
        is_better = losses < least
        integers = [
            torch.where(better.unsqueeze(1), rounded, kept)
            for better, (rounded, _), kept in zip(of_rows(layer, is_better, len(kernels)), found, integers, strict=True)
        ]
        scale, least = torch.where(is_better, tried, scale), torch.where(is_better, losses, least)
    return integers, replace(grid, scale=scale)


def keeps_range(scheme: Scheme) -> bool:
    """Whether no weight is clipped: with 8 bits there is nothing to gain (`docs/decisions/0019`)."""
    return scheme.bits == 8
