"""The weights of every kind of layer in one form: groups, outputs, inputs, taps."""

import math

from torch import Tensor, nn

TransposedConvolution = nn.ConvTranspose1d | nn.ConvTranspose2d


def grouped(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return a view (G, O/G, I/G, taps) of a contiguous tensor with the shape of the layer's weight."""
    groups = getattr(layer, "groups", 1)
    if isinstance(layer, TransposedConvolution):  # (I, O/G, ...)
        return weight.view(groups, len(weight) // groups, weight.shape[1], -1).transpose(1, 2)
    return weight.view(groups, len(weight) // groups, weight.shape[1], -1)


def taps_of(layer: nn.Module) -> float:
    """Return how many weights of one input channel an output sees: the kernel's, on average over the phases."""
    size = math.prod(getattr(layer, "kernel_size", (1,)))
    return size / math.prod(layer.stride) if isinstance(layer, TransposedConvolution) else size


def channel_dim(layer: nn.Module) -> int:
    """Return the dimension of the channels in a layer's input and output, from the last."""
    if isinstance(layer, nn.Linear):
        return -1
    return -2 if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d) else -3
