"""Layers with the shape of a block that has an identity branch in its kernel."""

from torch import Tensor, nn

from repquant.numerics.diagonal import diagonal_center


def may_have_identity(layer: nn.Module) -> bool:
    """Whether a layer has the shape of a block with an identity branch in its kernel."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (3, 3)
        and layer.stride == (1, 1)
        and layer.in_channels == layer.out_channels
    )


def diagonal_of(layer: nn.Module) -> Tensor | None:
    """Return the weights (O,) that an identity branch may have been added to; None for a layer of another shape."""
    if not may_have_identity(layer):
        return None
    assert isinstance(layer, nn.Conv2d)
    return diagonal_center(layer.weight.detach(), layer.groups)
