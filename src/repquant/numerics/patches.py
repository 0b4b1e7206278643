"""The input patches of a convolution at sampled output positions: what makes it a matrix product."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Kernel size, stride, zero padding and dilation, (vertical, horizontal) each."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    def output_size(self, size: Pair) -> Pair:
        """Return (H', W') for an input of (H, W)."""
        height, width = (
            (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for length, kernel, stride, padding, dilation in zip(
                size, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return height, width


class Positions:
    """A draw of places of output maps, without repetition, as many for each image; the same arguments draw the same.

    Args:
        images: in all.
        places: of a map.
        rows: places in all, at most; but at least one is drawn for each image.
    """

    def __init__(self, images: int, places: int, rows: int) -> None:
        self._places = places
        self._count = min(places, max(1, rows // images))
        self._generator = torch.Generator().manual_seed(0)

    def draw(self, images: int) -> Tensor:
        """Return (N, P) places for the next images."""
        tickets = torch.rand(images, self._places, generator=self._generator)
        return tickets.topk(self._count, largest=False).indices


def outputs_at(y: Tensor, positions: Tensor) -> Tensor:
    """Return the outputs (N*P, C) of (N, C, places), a map with H*W places row by row, at positions (N, P)."""
    channels = y.shape[1]
    index = positions.unsqueeze(1).expand(-1, channels, -1)
    return y.gather(2, index).transpose(1, 2).reshape(-1, channels)


def patches_at(x: Tensor, geometry: Geometry, positions: Tensor) -> Tensor:
    """Return the patches (N*P, C*kH*kW) of (N, C, H, W) that the outputs at positions (N, P) are computed from.

    Their elements are in the order of a flattened kernel, so that `patches @ weight.flatten(1).T` is the convolution.
    """
    (kernel_y, kernel_x), (stride_y, stride_x) = geometry.kernel, geometry.stride
    (padding_y, padding_x), (dilation_y, dilation_x) = geometry.padding, geometry.dilation
    _, output_width = geometry.output_size((x.shape[2], x.shape[3]))
    padded = F.pad(x, [padding_x, padding_x, padding_y, padding_y])
    images, channels, _, width = padded.shape
    top = positions // output_width * stride_y
    left = positions % output_width * stride_x
    down = torch.arange(kernel_y, device=x.device) * dilation_y
    right = torch.arange(kernel_x, device=x.device) * dilation_x
    taps = (down.unsqueeze(1) * width + right).flatten()
    index = (top * width + left).unsqueeze(2) + taps  # (N, P, taps)
    values = padded.flatten(2).gather(2, index.reshape(images, 1, -1).expand(-1, channels, -1))
    return values.reshape(images, channels, *index.shape[1:]).transpose(1, 2).reshape(-1, channels * len(taps))
