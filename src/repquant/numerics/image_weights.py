"""How much each image counts, so that a few with far larger values than the others do not decide for all."""

import torch
from torch import Tensor


def image_weights(powers: Tensor) -> Tensor:
    """Return a weight of at most 1 for each image: one that is louder than the median counts as much as that.

    Sums of squares grow with the power of an image. What a grid takes from the peaks of a loud image, the others do not
    lack.

    Args:
        powers: (N,), the mean square of what each image has at a place of the network.
    """
    typical = powers.median()
    return torch.where((powers > typical) & (typical > 0), typical / powers, 1.0)
