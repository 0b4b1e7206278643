"""Where an identity branch lands in a kernel."""

import torch
from torch import Tensor


def diagonal_center(kernel: Tensor, groups: int) -> Tensor:
    """Return the weights that an identity branch is added to: (C, C/groups, 3, 3) -> (C,)."""
    channels = torch.arange(len(kernel), device=kernel.device)
    return kernel[channels, channels % (len(kernel) // groups), 1, 1]
