"""How much larger the outputs of a layer should be, by a line through what they should be and what they are.

A grid may take from the values of a tensor in one direction: peaks are clipped, and small values round to 0. What
follows is then smaller by a factor that is about the same for all images, and a bias can't give it back. A factor for
each channel can, and costs nothing, as weights have a scale anyway. (RepAPQ, arXiv 2402.16121, learns such factors;
here they are computed.)

The line is that of what is given on what is wanted, and not the other way round: least squares the other way round
would take noise for a reason to make outputs smaller, layer after layer.
"""

import torch
from torch import Tensor

GAINS = (0.55, 2.0)
"""The smallest and the largest factor. Scales leave biases in 32 bits room for a factor of 2."""

_CERTAIN = 2  # standard errors
_FOLLOWS = 0.9  # share of the variance that the line has to explain: what is mostly noise would be amplified


class ChannelFit:
    """Of pairs of rows, what each of C channels gives and what it should give; sums are float64.

    Args:
        samples: how many rows there will be that are independent of each other: the number of images.
    """

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._weight: Tensor | float = 0.0
        self._sums: Tensor | float = 0.0

    def update(self, given: Tensor, wanted: Tensor, weight: Tensor) -> None:
        """Add rows (R, C) of both, which count as `weight` (R,) says."""
        x, y, w = given.double(), wanted.double(), weight.double()
        self._weight = self._weight + w.sum()
        self._sums = self._sums + torch.stack([w @ each for each in (x, y, x * x, x * y, y * y)])

    def gains(self, *, central: bool, pooled: bool = False) -> Tensor:
        """Return the factors (C,) float32 that what is given lacks; 1 where nothing certain can be said.

        A factor of less than two standard errors counts as chance, and of a larger one the less is taken off the larger
        it is (the positive part of James and Stein, "Estimation with Quadratic Loss", 1961). So few samples do no harm.

        Args:
            central: of the distances to the mean, where a bias takes up what is left of that.
            pooled: one factor () for all channels.
        """
        if not self._weight:
            return torch.ones(())
        x, y, xx, xy, yy = torch.as_tensor(self._sums) / self._weight
        given, covariance, wanted = (xx - x * x, xy - x * y, yy - y * y) if central else (xx, xy, yy)
        if pooled:
            given, covariance, wanted = given.sum(), covariance.sum(), wanted.sum()
        gains, explained = wanted / covariance, covariance.square() / (given * wanted)
        error = gains.square() * (1 / explained - 1).clamp(min=0) / max(self._samples - 2, 0)
        off = gains - 1
        gains = 1 + off * (1 - _CERTAIN**2 * error / off.square()).clamp(min=0)
        is_known = gains.isfinite() & (covariance > 0) & (explained > _FOLLOWS)
        return torch.where(is_known, gains, 1.0).clamp(*GAINS).float()
