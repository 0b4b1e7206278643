"""Rows that a layer's rounding is learned on: what it reads and should give at sampled output positions."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from repquant.graph.shelf import Shelf, Shelved
from repquant.methods.layer_positions import groups_of, inputs_at, maps, parameters_of
from repquant.numerics.adaround import LayerRows
from repquant.numerics.patches import Positions, outputs_at
from repquant.simulation.layers import FakeQuantize

ROWS = 8192
"""Output positions of a layer that are sampled, once; at least one of each image."""

_ROW_BYTES = 256 << 20  # of the inputs at these positions; a layer with many weights in a channel gets fewer
_HALF_MAX = torch.finfo(torch.float16).max


class RowSample:
    """Output positions of a layer, as many for each image, and what the float network has there.

    Args:
        layer: in float, but no transposed convolution: its outputs are no rows of one matrix.
        quantize: of its input.
        images: how many there are in all.
        shelf: where what the float network has waits.
        keep_inputs: whether float inputs are needed.
    """

    def __init__(
        self, layer: nn.Module, quantize: FakeQuantize, images: int, shelf: Shelf, *, keep_inputs: bool
    ) -> None:
        self._layer, self._quantize = layer, quantize
        self._images, self._keep_inputs = images, keep_inputs
        self._shelf = shelf
        self._draw: Positions | None = None
        self._positions: list[Tensor] = []
        self._targets: list[Shelved] = []
        self._float_steps: list[Shelved] = []

    def see(self, x: Tensor, y: Tensor, images: int) -> None:
        """Keep what is needed of the float layer's input and the value at its end, for the next `images` images."""
        outputs = maps(y, self._layer)
        if self._draw is None:
            # Windows of an image, say, may lie along the first dimension: each is as an image of its own.
            self._draw = self._drawing(self._images * len(outputs) // images, outputs.shape[2])
        positions = self._draw.draw(len(outputs)).to(y.device)
        self._positions.append(positions)
        self._targets.append(self._shelf.put(outputs_at(outputs, positions)))
        if self._keep_inputs:
            steps = inputs_at(self._layer, x, positions) / self._quantize.scale
            self._float_steps.append(self._shelf.put(steps.clamp(-_HALF_MAX, _HALF_MAX).half()))

    def rows(self, x: Iterable[Tensor], addends: Iterable[Tensor] | None, *, relu: bool) -> LayerRows:
        """Return the rows, with the targets, which leave the shelf.

        Args:
            x: the quantized layer's input in chunks.
            addends: what is added to its output in chunks, or None.
            relu: a ReLU follows.
        """
        steps = [
            inputs_at(self._layer, self._quantize.steps(part), positions).short()
            for part, positions in zip(x, self._positions, strict=True)
        ]
        added = [
            outputs_at(maps(part, self._layer), positions)
            for part, positions in zip(addends or (), self._positions if addends else (), strict=True)
        ]
        return LayerRows(
            steps=torch.cat(steps),
            targets=self._taken(self._targets),
            input_scale=self._quantize.scale,
            addend=torch.cat(added) if added else None,
            relu=relu,
            float_steps=self._taken(self._float_steps) if self._float_steps else None,
        )

    def _taken(self, parts: list[Shelved]) -> Tensor:
        taken = torch.cat(self._shelf.get(parts))
        self._shelf.drop(parts)
        return taken

    def _drawing(self, images: int, places: int) -> Positions:
        weight, _ = parameters_of(self._layer)
        row_bytes = groups_of(self._layer) * weight[0].numel() * (4 if self._keep_inputs else 2)
        return Positions(images, places, min(ROWS, _ROW_BYTES // row_bytes))
