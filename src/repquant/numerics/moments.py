"""Mean and variance of channels, from parts that are merged exactly; and the mean of rows alone.

Welford's and Chan's formulas (Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance", 1983): unlike
sums of squares they lose no digits when a mean is large against its deviation.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Of `count` values in each channel.

    Attributes:
        count: values a channel.
        mean: (C,) float64.
        deviation: (C,) float64, the sum of squared distances to the mean.
    """

    count: int
    mean: Tensor
    deviation: Tensor

    @classmethod
    def none(cls, channels: int) -> Self:
        """Return the moments of nothing."""
        zeros = torch.zeros(channels, dtype=torch.float64)
        return cls(0, zeros, zeros.clone())

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """Return the moments of a feature map (N, C, ...)."""
        values = x.detach().transpose(0, 1).flatten(1).double()
        mean = values.mean(1)
        return cls(values.shape[1], mean, (values - mean.unsqueeze(1)).square().sum(1))

    def merge(self, other: Self) -> Self:
        """Return the moments of both parts."""
        count = self.count + other.count
        if count == 0:
            return self
        distance = other.mean - self.mean
        mean = self.mean + distance * (other.count / count)
        between = distance.square() * (self.count * other.count / count)
        return type(self)(count, mean, self.deviation + other.deviation + between)

    @property
    def variance(self) -> Tensor:
        """(C,), the mean squared distance to the mean."""
        return self.deviation / max(self.count, 1)


class Mean:
    """Of rows (R, C) that come in parts; summed in float64."""

    def __init__(self) -> None:
        self._weight: Tensor | float = 0.0
        self._sum: Tensor | float = 0.0
        self._dtype = torch.float32

    def update(self, rows: Tensor, weight: Tensor) -> None:
        """Add rows, which count as `weight` (R,) says."""
        self._weight = self._weight + weight.sum(dtype=torch.float64)
        self._sum = self._sum + weight.double() @ rows.double()
        self._dtype = rows.dtype

    def value(self) -> Tensor:
        """Return the mean (C,) in the dtype of the rows."""
        return (torch.as_tensor(self._sum) / self._weight).to(self._dtype)
