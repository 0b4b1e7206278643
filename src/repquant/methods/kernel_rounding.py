"""Rounding the kernels of a layer with error feedback, on the steps with which they lose least."""

from collections.abc import Iterable
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
    kernels, roundings = kernel_rows(layer, len(moments)), map(FeedbackRounding, moments)

    def round_all(roundings: Iterable[FeedbackRounding], scale: Tensor) -> list[Tensor]:
        return [
            each.round(kernel, steps, grid.scheme.qmin, grid.scheme.qmax)
            for each, kernel, steps in zip(roundings, kernels, of_rows(layer, scale, len(kernels)), strict=True)
        ]

    if keeps_range(grid.scheme):
        return round_all(roundings, grid.scale), grid
    kept = list(roundings)

    def loss(integers: list[Tensor], scale: Tensor) -> Tensor:
        parts = zip(kept, kernels, integers, of_rows(layer, scale, len(kernels)), strict=True)
        return sums_of_rows(layer, [each.loss(kernel, rows, steps) for each, kernel, rows, steps in parts], scale.shape)

    scale, integers = grid.scale, round_all(kept, grid.scale)
    least = loss(integers, scale)
    for share in SHARES[1:]:
        tried = stored_scale(torch.maximum(grid.scale * share, smallest), grid.scheme)
        found = round_all(kept, tried)
        losses = loss(found, tried)
        better = losses < least
        integers = [
            torch.where(rows.unsqueeze(1), new, old)
            for rows, new, old in zip(of_rows(layer, better, len(kernels)), found, integers, strict=True)
        ]
        scale, least = torch.where(better, tried, scale), torch.where(better, losses, least)
    return integers, replace(grid, scale=scale)


def keeps_range(scheme: Scheme) -> bool:
    """Whether the range stays as it was given: with 8 bits there is nothing to gain (`docs/decisions/0019`)."""
    return scheme.bits == 8
