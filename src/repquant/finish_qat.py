"""From a network that has trained with rounding in the loop to its INT8 form."""

from __future__ import annotations

from torch import nn

from repquant.errors import InputError
from repquant.qat.network import trained_integers
from repquant.qat.trainable import Trainable
from repquant.quantize import Quantized


def finish_qat(network: nn.Module) -> Quantized:
    """Return the INT8 form whose integers are those that training saw last; see `quantize` for what it can.

    Args:
        network: from `prepare_qat`, trained; it is not changed.

    Raises:
        InputError: another module, such as one that wraps it.

    Examples:
        >>> import torch
        >>> from repquant import prepare_qat
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1)).eval()
        >>> int8 = finish_qat(prepare_qat(model, [torch.randn(8, 3, 16, 16)]))
        >>> [layer.name for layer in int8.layers if layer.precision.startswith("int")]
        ['0', '2']
    """
    if not isinstance(network, Trainable):
        raise InputError(
            f"the network is a {type(network).__name__}; give what prepare_qat returned, which wrappers such as "
            "DistributedDataParallel keep as their .module"
        )
    is_training = network.training
    rounded = trained_integers(network.network, network.start.graph, network.start.plan)
    network.train(is_training)
    return Quantized(rounded.graph, rounded.plan)
