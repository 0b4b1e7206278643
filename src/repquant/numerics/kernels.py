"""The algebra of convolution kernels (O, I/groups, kH, kW): coarser groups, wider kernels, one behind another."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor


def regrouped(kernel: Tensor, groups: int, coarser: int) -> Tensor:
    """Write a kernel with `groups` groups as one with `coarser` groups, which divides it: (O, I/coarser, kH, kW)."""
    ratio = groups // coarser
    if ratio == 1:
        return kernel
    outputs, inputs = kernel.shape[0] // groups, kernel.shape[1]
    blocks = kernel.view(coarser, ratio, outputs, inputs, *kernel.shape[2:])
    wide = kernel.new_zeros(coarser, ratio, outputs, ratio, inputs, *kernel.shape[2:])
    for index in range(ratio):
        wide[:, index, :, index] = blocks[:, index]
    return wide.reshape(kernel.shape[0], ratio * inputs, *kernel.shape[2:])


def embedded(kernel: Tensor, front: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Put a kernel into zeros of `size` taps (H, W), `front` taps behind their beginning."""
    (top, left), (height, width) = front, size
    return F.pad(kernel, [left, width - left - kernel.shape[3], top, height - top - kernel.shape[2]])


def dilated(kernel: Tensor, dilation: tuple[int, int]) -> Tensor:
    """Write a dilated kernel as one without dilation: zeros between the taps."""
    if dilation == (1, 1):
        return kernel
    height, width = (step * (size - 1) + 1 for step, size in zip(dilation, kernel.shape[2:], strict=True))
    wide = kernel.new_zeros(*kernel.shape[:2], height, width)
    wide[:, :, :: dilation[0], :: dilation[1]] = kernel
    return wide


def composed(
    first: Tensor, first_groups: int, first_stride: tuple[int, int], second: Tensor, second_groups: int
) -> Tensor:
    """Return the kernel of the second convolution behind the first, neither padded, with gcd(groups) groups.

    Tap u of the second reads the first's output at u, which reads the input at stride * u + t:

        K[:, :, s * u + t] += K2[:, :, u] @ K1[:, :, t]
    """
    groups = math.gcd(first_groups, second_groups)
    first = regrouped(first, first_groups, groups).unflatten(0, (groups, -1))
    second = regrouped(second, second_groups, groups).unflatten(0, (groups, -1))
    sizes = [
        stride * (behind - 1) + ahead
        for stride, behind, ahead in zip(first_stride, second.shape[3:], first.shape[3:], strict=True)
    ]
    product = first.new_zeros(groups, second.shape[1], first.shape[2], *sizes)
    for row, column in itertools.product(range(second.shape[3]), range(second.shape[4])):
        top, left = first_stride[0] * row, first_stride[1] * column
        window = product[..., top : top + first.shape[3], left : left + first.shape[4]]
        window += torch.einsum("gom,gmihw->goihw", second[..., row, column], first)
    return product.flatten(0, 1)
