"""A layer of a network in quantization-aware training: what is rounded is the kernel that will be deployed."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repquant.numerics.affine import Grid
from repquant.qat.kernels import KernelSource
from repquant.qat.quantizers import ActivationQuantizer, WeightQuantizer

_FUNCTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.Linear: F.linear,
}
_GEOMETRY = ("stride", "padding", "output_padding", "groups", "dilation")


class QatLayer(nn.Module):
    """A convolution or linear layer in training, behind the quantizer of its input.

    Args:
        layer: one of `graph.operators.LAYERS`, for its geometry.
        source: where kernel and bias come from.
        input: what has rounded the input; it is read for its scale.
        weight: rounds the kernel.
    """

    def __init__(
        self, layer: nn.Module, source: KernelSource, input: ActivationQuantizer, weight: WeightQuantizer
    ) -> None:
        super().__init__()
        self.source = source
        self.input = input
        self.weight = weight
        self._function = _FUNCTIONS[type(layer)]
        names = () if isinstance(layer, nn.Linear) else _GEOMETRY
        self._geometry: dict[str, Any] = {name: getattr(layer, name) for name in names}
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            assert layer.padding_mode == "zeros"
            del self._geometry["output_padding"]

    def forward(self, x: Tensor) -> Tensor:
        """Map the rounded input (N, I, ...) to (N, O, ...); a linear layer (..., I) to (..., O)."""
        kernel, bias = self.source()
        kernel, bias = self.weight(kernel, bias, self.input.grid().scale)

        def apply(kernel: Tensor, bias: Tensor | None) -> Tensor:
            return self._function(x, kernel, bias, **self._geometry)

        return self.source.apply_layer(apply, x, kernel, bias)

    @torch.no_grad()
    def kernel_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """Return kernel and bias as they are before rounding."""
        kernel, bias = self.source()
        return kernel, bias

    @torch.no_grad()
    def weight_grid(self) -> Grid:
        """Return the grid that the kernel is rounded to."""
        return self.weight.grid(*self.kernel_and_bias(), self.input.grid().scale)
