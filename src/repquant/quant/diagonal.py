"""Where an identity branch lands in the layers of a deploy model."""

from torch import Tensor, nn

from repquant.numerics.diagonal import diagonal_center
from repquant.quant.convert import Layer


def may_have_identity(layer: nn.Module) -> bool:
    """Whether a layer has the shape of a block with an identity branch in its kernel."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (3, 3)
        and layer.stride == (1, 1)
        and layer.in_channels == layer.out_channels
    )


def identity_weights(layer: Layer) -> Tensor | None:
    """Return the weights (O,) that an identity branch may have been added to or become; None where there are none.

    They are the diagonal center of a 3x3 kernel, and all weights of the factor for each channel that is the shortcut
    of an identity set apart.
    """
    weight = layer.weight.detach()
    if not isinstance(layer, nn.Conv2d):
        return None
    if may_have_identity(layer):
        return diagonal_center(weight, layer.groups)
    is_factor = layer.kernel_size == (1, 1) and layer.groups == layer.in_channels == layer.out_channels
    return weight.flatten() if is_factor else None
