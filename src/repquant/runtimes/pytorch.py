"""PyTorch: the float model, or the simulation of the quantized one."""

import torch
from torch import nn
from torch.utils import _pytree as pytree

from repquant.runtimes.interface import Array
from repquant.runtimes.model_file import as_outputs


class PyTorchRuntime:
    """A module as a runtime, on the device where its weights are.

    Args:
        module: takes its inputs one by one; in eval mode.
        name: the runtime's name.

    Raises:
        ValueError: `module` is in training mode, where logits depend on the rest of the batch.
    """

    def __init__(self, module: nn.Module, name: str = "pytorch") -> None:
        if module.training:
            raise ValueError(f"{type(module).__name__} is in training mode; call .eval() on it first")
        self.name = name
        self.version = torch.__version__
        self._module = module
        weight = next(module.parameters(), None)
        self._device = torch.device("cpu") if weight is None else weight.device

    def __call__(self, *inputs: Array) -> Array | tuple[Array, ...]:
        """Return the output for the inputs, or a tuple where there are several, in the order of their tree."""
        with torch.inference_mode():
            result = self._module(*(torch.from_numpy(x).to(self._device) for x in inputs))
        leaves = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        return as_outputs([leaf.float().cpu().numpy() for leaf in leaves])
