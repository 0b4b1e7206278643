"""How much each image counts, so that a few with far larger values than the others do not decide for all."""

from torch import Tensor

SMALLEST = 0.01
"""Weight of an image, however loud it is."""


def image_weights(powers: Tensor) -> Tensor:
    """Return a weight for each image, 1 or less: one that is louder than the median counts as much as that.

    Sums of squares grow with the power of an image. What a grid takes from the peaks of a loud image, the others do not
    lack. No weight is below `SMALLEST`: where half of the images have next to nothing, the others still count.

    Args:
        powers: (N,), the mean square of what each image has at a place of the network.

    Raises:
        FloatingPointError: a power is NaN or infinite.
    """
    if not powers.isfinite().all():
        raise FloatingPointError("the outputs of a layer are not finite for every image; look for NaN in the images")
    return (powers.median() / powers).clamp(SMALLEST, 1.0).nan_to_num(1.0)
