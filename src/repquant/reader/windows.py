"""Operators with a window that moves over an image or a line: convolutions and poolings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from repquant.errors import InputError

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAXIMA = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEANS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True, kw_only=True)
class _Window:
    """Geometry in one number a dimension; `begin` and `end` are what is padded in front and behind."""

    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    begin: list[int]
    end: list[int]

    @property
    def is_even(self) -> bool:
        return self.begin == self.end

    @property
    def widths(self) -> list[int]:
        """The padding as `F.pad` takes it, the last dimension first."""
        pairs = list(zip(self.begin, self.end, strict=True))
        return [width for pair in reversed(pairs) for width in pair]


def _window(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
) -> _Window:
    rank = len(kernel)
    if x.ndim != rank + 2 or rank not in _CONVOLUTIONS:
        raise InputError(f"its window has {rank} dimensions on a value of shape {tuple(x.shape)}")
    stride, dilation = list(strides or [1] * rank), list(dilations or [1] * rank)
    begin, end = (list(pads[:rank]), list(pads[rank:])) if pads else ([0] * rank, [0] * rank)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((-(-size // step) - 1) * step + (width - 1) * rate + 1 - size, 0)
            for size, width, step, rate in zip(x.shape[2:], kernel, stride, dilation, strict=True)
        ]
        halves = [total // 2 for total in totals]
        others = [total - half for total, half in zip(totals, halves, strict=True)]
        begin, end = (halves, others) if auto_pad == "SAME_UPPER" else (others, halves)
    return _Window(kernel=list(kernel), stride=stride, dilation=dilation, begin=begin, end=end)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    window = _window(x, tuple(weight.shape[2:]), strides, dilations, pads, auto_pad)
    padding = window.begin
    if not window.is_even:
        x, padding = F.pad(x, window.widths), [0] * len(window.kernel)
    convolve: Callable[..., Tensor] = _CONVOLUTIONS[len(window.kernel)]
    return convolve(x, weight, bias, window.stride, padding, window.dilation, group)


def _transposed_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    if output_shape or auto_pad not in ("NOTSET", "VALID"):
        raise InputError("its padding follows from the size of its output; export it with numbers in `pads`")
    window = _window(x, tuple(weight.shape[2:]), strides, dilations, pads, "NOTSET")
    rank = len(window.kernel)
    more = list(output_padding or [0] * rank)
    convolve: Callable[..., Tensor] = _TRANSPOSED[rank]
    if window.is_even:
        return convolve(x, weight, bias, window.stride, window.begin, more, group, window.dilation)
    result = convolve(x, weight, bias, window.stride, 0, more, group, window.dilation)
    return F.pad(result, [-width for width in window.widths])


def _max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> Tensor:
    window = _window(x, kernel_shape, strides, dilations, pads, auto_pad)
    padding = window.begin
    if not window.is_even or _is_beyond_half(window):
        x, padding = F.pad(x, window.widths, value=float("-inf")), [0] * len(window.kernel)
    pool: Callable[..., Tensor] = _MAXIMA[len(window.kernel)]
    return pool(x, window.kernel, window.stride, padding, window.dilation, bool(ceil_mode))


def _average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    window = _window(x, kernel_shape, strides, dilations, pads, auto_pad)
    if any(rate != 1 for rate in window.dilation):
        raise InputError("it averages over values that are not neighbours (dilations), which is not supported")
    pool: Callable[..., Tensor] = _MEANS[len(window.kernel)]
    if window.is_even and not _is_beyond_half(window):
        return pool(x, window.kernel, window.stride, window.begin, bool(ceil_mode), bool(count_include_pad))
    if ceil_mode:
        raise InputError("it rounds its size up and pads unevenly, which is not supported")
    result = pool(F.pad(x, window.widths), window.kernel, window.stride)
    if count_include_pad:
        return result
    inside = F.pad(torch.ones_like(x[:1, :1]), window.widths)
    return result / pool(inside, window.kernel, window.stride)


def _is_beyond_half(window: _Window) -> bool:
    """Whether it pads by more than half of the kernel, which torch does not allow."""
    return any(2 * width > size for width, size in zip(window.begin, window.kernel, strict=True))


def _global_average(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1) if x.ndim == 4 else torch.mean(x, list(range(2, x.ndim)), keepdim=True)


def _global_maximum(x: Tensor) -> Tensor:
    return torch.amax(x, list(range(2, x.ndim)), keepdim=True)


WINDOWS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "AveragePool": _average_pool,
        "Conv": _convolution,
        "ConvTranspose": _transposed_convolution,
        "GlobalAveragePool": _global_average,
        "GlobalMaxPool": _global_maximum,
        "MaxPool": _max_pool,
    }
)
