"""A network in quantization-aware training, for a training loop of the user's own."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from repquant.graph.copies import copy_graph
from repquant.graph.devices import device_of, full_precision, on_device
from repquant.methods.rounded import Rounded
from repquant.qat.distillation import output_loss
from repquant.qat.in_place import relu_in_place
from repquant.qat.rates import parameter_units


class Trainable(nn.Module):
    """A network that rounds as its target does and trains through it, called as the user's module is.

    It is an ordinary module: it moves to a device, has a `state_dict`, and may be wrapped for distributed training.
    Batch normalization is folded, so its statistics stay as they are in training mode too.

    Args:
        network: from `qat.network.make_trainable`.
        start: what it was made from.
        teacher: the float network; it is copied, and is no part of the state.
    """

    def __init__(self, network: fx.GraphModule, start: Rounded, teacher: fx.GraphModule) -> None:
        super().__init__()
        self.network = network
        self.start = start
        self._teacher = (relu_in_place(copy_graph(teacher).eval().requires_grad_(False)),)  # hidden from torch

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the user's module returns, rounded on the way as its integers will be."""
        with full_precision(device_of(self.network)):
            return self.network(*args, **kwargs)

    def distillation_loss(self, outputs: Any, *args: Any, temperature: float = 1.0, **kwargs: Any) -> Tensor:
        """Return how far outputs are from those of the float network, a tensor () to add to the loss or to be it.

        Logits (N, K) count by the KL divergence of the softmax, in nats (Hinton et al., 2015), other outputs by their
        squared error as a share of the squares of the aim.

        Args:
            outputs: what this network, or its wrapper, returned for the inputs.
            args: the inputs.
            temperature: of the softmax.
            kwargs: the inputs by name.
        """
        device = device_of(self.network)
        self._teacher = (on_device(*self._teacher, device),)
        with torch.no_grad(), full_precision(device):
            aims = self._teacher[0](*args, **kwargs)
        found, expected = (
            [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)] for values in (outputs, aims)
        )
        return output_loss(found, expected, temperature)

    def parameter_groups(self, learning_rate: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Return what `torch.optim.AdamW` takes in place of parameters: a learning rate of its own for each.

        An update of Adam has the size of its learning rate. Here that is counted in steps of the grid of each kernel,
        so that one number suits all layers and bits: half of it, times the number of updates along a cosine, should be
        about 0.7 steps of the grid (docs/concepts/inside-qat.md).

        Args:
            learning_rate: in steps of each kernel's grid, for example 1.4 / number of updates, and at most 0.01.
            weight_decay: of kernels; biases and scales have none.
        """
        units = parameter_units(self.network)
        return [
            {
                "params": [parameter],
                "lr": learning_rate * units[name],
                "weight_decay": weight_decay if parameter.ndim > 1 else 0.0,
            }
            for name, parameter in self.network.named_parameters()
        ]
