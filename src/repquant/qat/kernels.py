"""Where the kernels of a network in quantization-aware training come from."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from repquant.graph.branches import kernel_and_bias


class KernelSource(nn.Module):
    """Parameters, and the differentiable way from them to the kernel and bias of a layer.

    What is rounded is the kernel that it gives, so that training sees what will be deployed, whatever the parameters
    are.
    """

    @abstractmethod
    def forward(self) -> tuple[Tensor, Tensor | None]:
        """Return kernel and bias, in the shapes of the layer's."""

    def apply_layer(
        self, layer: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, kernel: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Return the layer's output; the place to look at what the layer reads, or to treat what it gives.

        Args:
            layer: kernel and bias to output, for the input `x`.
            x: what the layer reads, rounded.
            kernel: rounded.
            bias: rounded.
        """
        del x
        return layer(kernel, bias)


class PlainKernel(KernelSource):
    """The kernel and bias of a deploy layer are the parameters."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        assert bias is None or isinstance(bias, Tensor)
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def forward(self) -> tuple[Tensor, Tensor | None]:
        """Return (kernel, bias)."""
        return self.weight, self.bias


class MergedKernel(KernelSource):
    """The parameters are those of linear branches; the kernel is that of the one convolution which they are equal to.

    It is merged in float64 at each step. What was done to the deploy layer since it was merged, such as the scaling of
    channels and the rounding, is a constant beside the branches: a branch of one convolution moves the kernel by as
    much as it moves itself.

    Args:
        branches: from `linear.merge_with_branches`; they are trained in place.
        layer: the convolution to begin with.
    """

    kernel_offset: Tensor
    bias_offset: Tensor

    def __init__(self, branches: fx.GraphModule, layer: nn.Module) -> None:
        super().__init__()
        self.branches = branches
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        assert isinstance(bias, Tensor)
        with torch.no_grad():
            kernel, shift = kernel_and_bias(branches)
            self.register_buffer("kernel_offset", weight - kernel)
            self.register_buffer("bias_offset", bias - shift)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return (kernel, bias)."""
        kernel, bias = kernel_and_bias(self.branches)
        return kernel + self.kernel_offset, bias + self.bias_offset
