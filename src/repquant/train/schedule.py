"""What changes from epoch to epoch by a plan: the side of the training images."""

from repquant.errors import InputError, given
from repquant.option_ranges import IMAGE_SIDE

SizePlan = tuple[tuple[int, int], ...]


def parse_sizes(text: str) -> SizePlan:
    """Read "0:96,10:128,24:160": from the epoch before the colon on, counted from 0, images have the side behind it.

    Raises:
        InputError: the text is no such list, does not begin with epoch 0, or its epochs do not rise.
    """
    try:
        plan = tuple((int(epoch), int(side)) for epoch, side in (part.split(":") for part in text.split(",")))
    except ValueError:
        raise InputError(f"{given('size_schedule', text)} was given; write it as 0:96,10:128: epoch:pixels") from None
    epochs = [epoch for epoch, _ in plan]
    if epochs[0] != 0 or epochs != sorted(set(epochs)) or not all(side in IMAGE_SIDE for _, side in plan):
        raise InputError(
            f"{given('size_schedule', text)} was given; its epochs begin with 0 and rise, its sides are {IMAGE_SIDE}"
        )
    return plan


def size_at(plan: SizePlan, epoch: int) -> int:
    """The side of the training images in an epoch, counted from 0."""
    return [side for begin, side in plan if begin <= epoch][-1]
