"""PyTorch: the float model, or the simulation of the quantized one."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


class PyTorchRuntime:
    """A module as a runtime, on the device where its weights are.

    Args:
        module: maps (N, 3, H, W) to logits (N, K); in eval mode.
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

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalized images (N, 3, H, W) to logits (N, K)."""
        with torch.inference_mode():
            logits: torch.Tensor = self._module(torch.from_numpy(images).to(self._device))
            return np.asarray(logits.float().cpu().numpy())
