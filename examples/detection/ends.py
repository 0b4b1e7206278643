"""Outputs that leave as 8-bit integers, as some accelerators ask for: each on its own grid, or all on one."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from decode import from_pixels, places, to_pixels

Network = Callable[[Tensor], dict[str, Tensor]]


class Concatenated(nn.Module):
    """A detector whose boxes and scores leave as one tensor (N, 4 + C, P)."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> Tensor:
        output = self.detector(image)
        return torch.cat([output["boxes"], output["scores"]], 1)


def parted(output: Tensor) -> dict[str, Tensor]:
    """Undo the concatenation."""
    return {"boxes": output[:, :4], "scores": output[:, 4:]}


def in_pixels(network: Network) -> Network:
    """Return a detector that gives boxes (N, 4, P) in pixels and probabilities, as many exported detectors do."""

    def call(images: Tensor) -> dict[str, Tensor]:
        output = network(images)
        boxes = to_pixels(output["boxes"], *places(images.shape[-1])).transpose(1, 2)
        return {"boxes": boxes, "scores": output["scores"].sigmoid()}

    return call


def raw(network: Network) -> Network:
    """Undo `in_pixels`; an edge that was rounded across its place lies next to it."""

    def call(images: Tensor) -> dict[str, Tensor]:
        output = network(images)
        boxes = from_pixels(output["boxes"].transpose(1, 2), *places(images.shape[-1]))
        return {"boxes": boxes, "scores": output["scores"].logit()}

    return call


def rounded(network: Network, batches: Iterable[Tensor], *, shared: bool) -> Network:
    """Return a detector whose outputs are rounded to 8 bits, between the least and the largest value on some images.

    Args:
        network: with outputs in float.
        batches: of images.
        shared: whether there is one grid for all outputs.
    """
    seen = [network(images) for images in batches]
    low = {name: min(0.0, *(float(output[name].min()) for output in seen)) for name in seen[0]}
    high = {name: max(0.0, *(float(output[name].max()) for output in seen)) for name in seen[0]}
    if shared:
        low, high = dict.fromkeys(low, min(low.values())), dict.fromkeys(high, max(high.values()))

    def on_grids(images: Tensor) -> dict[str, Tensor]:
        return {name: _on_grid(x, low[name], high[name]) for name, x in network(images).items()}

    return on_grids


def _on_grid(x: Tensor, low: float, high: float) -> Tensor:
    scale = (high - low) / 255
    zero = round(-low / scale)
    return ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale
