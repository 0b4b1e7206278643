"""Rows that a layer's rounding is learned on: what it reads and should give at sampled output positions."""

import torch
from torch import Tensor, nn

from repquant.methods.layer_positions import groups_of, inputs_at, maps, parameters_of
from repquant.numerics.adaround import LayerRows
from repquant.numerics.patches import draw_positions, outputs_at
from repquant.simulation.layers import FakeQuantize

_ROWS = 8192  # output positions of a layer that are sampled, once; at least one of each image
_ROW_BYTES = 256 << 20  # of the inputs at these positions; a layer with many weights in a channel gets fewer
_HALF_MAX = torch.finfo(torch.float16).max


class RowSample:
    """Output positions of a layer, as many for each image, and what the float network has there.

    Args:
        layer: in float, but no transposed convolution: its outputs are no rows of one matrix.
        quantize: of its input.
        images: how many there are in all.
        keep_inputs: whether float inputs are needed.
    """

    def __init__(self, layer: nn.Module, quantize: FakeQuantize, images: int, *, keep_inputs: bool) -> None:
        self._layer, self._quantize = layer, quantize
        self._images, self._keep_inputs = images, keep_inputs
        self._positions = torch.empty(0, 0)
        self._targets: list[Tensor] = []
        self._float_steps: list[Tensor] = []
        self._seen = 0

    def see(self, x: Tensor, y: Tensor, images: int) -> None:
        """Keep what is needed of the float layer's input and the value at its end, for the next `images` images."""
        outputs = maps(y, self._layer)
        if not self._targets:
            # Windows of an image, say, may lie along the first dimension: each is as an image of its own.
            self._positions = self._drawn(self._images * len(outputs) // images, outputs.shape[2]).to(y.device)
        positions = self._positions[self._seen : self._seen + len(outputs)]
        self._seen += len(outputs)
        self._targets.append(outputs_at(outputs, positions))
        if self._keep_inputs:
            steps = inputs_at(self._layer, x, positions) / self._quantize.scale
            self._float_steps.append(steps.clamp(-_HALF_MAX, _HALF_MAX).half())

    def rows(self, x: list[Tensor], addends: list[Tensor], *, relu: bool) -> LayerRows:
        """Return the rows, with the targets.

        Args:
            x: the quantized layer's input in chunks.
            addends: what is added to its output in chunks, or nothing.
            relu: a ReLU follows.
        """
        chunks = self._positions.split([len(part) for part in x])
        steps = [
            inputs_at(self._layer, self._quantize.steps(part), positions).short()
            for part, positions in zip(x, chunks, strict=True)
        ]
        added = [
            outputs_at(maps(part, self._layer), positions)
            for part, positions in zip(addends, chunks if addends else (), strict=True)
        ]
        return LayerRows(
            steps=torch.cat(steps),
            targets=torch.cat(self._targets),
            input_scale=self._quantize.scale,
            addend=torch.cat(added) if added else None,
            relu=relu,
            float_steps=torch.cat(self._float_steps) if self._float_steps else None,
        )

    def _drawn(self, rows: int, places: int) -> Tensor:
        weight, _ = parameters_of(self._layer)
        row_bytes = groups_of(self._layer) * weight[0].numel() * (4 if self._keep_inputs else 2)
        return draw_positions(rows, places, min(_ROWS, _ROW_BYTES // row_bytes))
