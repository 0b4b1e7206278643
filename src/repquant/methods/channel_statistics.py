"""Streaming statistics of channels: what equalization reads of the activations, in memory that doesn't grow."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class ChannelMoments:
    """Of the channels (C,) of a value.

    Attributes:
        dim: of the channels.
    """

    dim: int
    values: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    positive: Tensor | float = 0.0

    def update(self, x: Tensor) -> None:
        """Add the values of a batch."""
        dim = self.dim % x.ndim
        inner = [other for other in range(1, x.ndim) if other != dim]
        self.values += x.numel() // x.shape[dim]
        self.total += _over_images(x.sum(inner) if inner else x, dim)
        self.squares += _over_images(torch.linalg.vector_norm(x, dim=inner).double().square() if inner else x * x, dim)
        self.positive += _over_images((x > 0).sum(inner, dtype=torch.float32) if inner else x > 0, dim)

    @property
    def variance(self) -> Tensor:
        """(C,) float64."""
        mean = torch.as_tensor(self.total) / self.values
        return (torch.as_tensor(self.squares) / self.values - mean.square()).clamp(min=0).cpu()

    @property
    def active(self) -> Tensor:
        """(C,) float64, the share of positive values."""
        return (torch.as_tensor(self.positive) / self.values).cpu()


def _over_images(parts: Tensor, dim: int) -> Tensor:
    """Return the sum (C,) in float64 over dimension 0, where that is not `dim`.

    Within an image sums are of float32: in float64 torch copies the whole value first, for forty times the time.
    """
    return parts.sum(0, dtype=torch.float64) if dim else parts.double()


@dataclass
class ChannelRanges:
    """The largest positive and negative magnitudes, averaged over images: what an ordinary image needs of a grid.

    Attributes:
        shape: broadcasts to the value; maxima are over the dimensions of size 1.
    """

    shape: tuple[int, ...]
    images: int = 0
    above: Tensor | float = 0.0
    below: Tensor | float = 0.0

    def update(self, x: Tensor, images: int) -> None:
        """Add the value for a batch of images, which lie behind each other along dimension 0."""
        parts = images if self.shape[0] == 1 and len(x) % images == 0 else 1
        x = x.unflatten(0, (parts, -1))
        over = [dim + 1 for dim, size in enumerate(self.shape) if size == 1]
        self.images += parts
        self.above += _mean_part(x.amax(over), parts, self.shape)
        self.below += _mean_part(-x.amin(over), parts, self.shape)

    @property
    def high(self) -> Tensor:
        """Float64 in `shape`, at least 0."""
        return (torch.as_tensor(self.above) / self.images).cpu()

    @property
    def low(self) -> Tensor:
        """Float64 in `shape`, at least 0."""
        return (torch.as_tensor(self.below) / self.images).cpu()


def _mean_part(extreme: Tensor, parts: int, shape: tuple[int, ...]) -> Tensor:
    return extreme.clamp(min=0).reshape(parts, *shape).sum(0, dtype=torch.float64)
