"""Affine maps between feature maps, as one convolution each, exact at the borders.

A map takes the root tensor x (N, C, H, W) to

    y[o, i] = bias[o] + sum over c, t of kernel[o, c, t] * x[c, stride * i + t - front],    x = 0 outside the root

per spatial dimension. Every operation here gives the map of the composed operator exactly, or raises `NotOneMapError`
with the reason. Padding a map is exact where its window beyond the border sees nothing of the root and what is left,
the bias, is the padded constant. Kernel and bias are differentiable in the parameters of the layers.
"""

import itertools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from repquant.numerics.kernels import composed, dilated, embedded, regrouped

Pair = tuple[int, int]


class NotOneMapError(Exception):
    """The composed operator is no single zero-padded convolution of the root; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Affine:
    """A map from `root` to feature maps of `out` pixels (H, W).

    The kernel (O, C/groups, *size), float64, is made when it is asked for: most maps are never merged. Its taps lie
    `apart` pixels from each other, 0 for a single one; all between them is 0. `layers` are the convolutions that the
    map stands for, `macs` the multiply-adds of one image in all its operators, `paths` the number of summands.
    """

    root: fx.Node
    kernel: Callable[[], Tensor]
    bias: Tensor
    groups: int
    size: Pair
    front: Pair
    stride: Pair
    out: Pair
    inputs: int
    apart: Pair
    layers: tuple[str, ...] = ()
    macs: int = 0
    paths: int = 1

    @property
    def outputs(self) -> int:
        """The number of output channels."""
        return len(self.bias)

    @property
    def source(self) -> Pair:
        """The pixels of the root."""
        height, width = self.root.meta["val"].shape[2:]
        return height, width

    @property
    def dilation(self) -> Pair:
        """That of a convolution with the taps alone."""
        return _each(lambda gap: max(gap, 1), self.apart)

    @property
    def taps(self) -> Pair:
        """How many lie below and beside each other."""
        return _each(lambda size, gap: (size - 1) // gap + 1, self.size, self.dilation)

    def weight(self) -> Tensor:
        """Return the kernel without what lies between its taps, (O, C/groups, *taps)."""
        down, right = self.dilation
        return self.kernel()[:, :, ::down, ::right]


def identity(root: fx.Node, device: torch.device) -> Affine:
    """Return the map of a node to itself, for parameters on a device."""
    value = root.meta["val"]
    channels, height, width = value.shape[1:]
    bias = torch.zeros(channels, dtype=torch.float64, device=device)
    return Affine(
        root=root,
        kernel=lambda: torch.ones_like(bias).view(channels, 1, 1, 1),
        bias=bias,
        groups=channels,
        size=(1, 1),
        front=(0, 0),
        stride=(1, 1),
        out=(height, width),
        inputs=channels,
        apart=(0, 0),
    )


def padded(path: Affine, front: Pair, back: Pair, value: float = 0.0) -> Affine:
    """Return a map with `value` around its result: rows and columns in front and behind."""
    if not any(front) and not any(back):
        return path
    if min(front + back) < 0:
        raise NotOneMapError("it is cropped")
    for axis in range(2):
        sees_front = front[axis] > 0 and path.size[axis] - 1 - path.front[axis] >= path.stride[axis]
        first_behind = path.stride[axis] * path.out[axis] - path.front[axis]
        sees_back = back[axis] > 0 and first_behind < path.source[axis]
        if sees_front or sees_back:
            raise NotOneMapError(
                "a window larger than one pixel lies in front of a padded operator: its borders differ"
            )
    if bool((path.bias != value).any()):
        raise NotOneMapError("a bias lies in front of a padded operator, which pads with another constant")
    return replace(
        path,
        front=_each(lambda a, s, f: a + s * f, path.front, path.stride, front),
        out=_each(lambda n, f, b: n + f + b, path.out, front, back),
    )


def convolved(path: Affine, layer: nn.Conv2d, name: str) -> Affine:
    """Return the map of a zero-padded convolution behind another map."""
    padding, stride, dilation = _pair(layer.padding), _pair(layer.stride), _pair(layer.dilation)
    path = padded(path, padding, padding)
    weight = layer.weight
    return _behind(
        path,
        kernel=lambda: dilated(weight.double(), dilation),
        bias=torch.zeros_like(path.bias[:1]).expand(len(weight)) if layer.bias is None else layer.bias.double(),
        size=_each(lambda d, k: d * (k - 1) + 1, dilation, _pair(weight.shape[2:])),
        apart=_each(lambda d, k: d if k > 1 else 0, dilation, _pair(weight.shape[2:])),
        stride=stride,
        groups=layer.groups,
        taps=weight[0].numel(),
        layers=(name,),
    )


def pooled(path: Affine, size: Pair, stride: Pair, padding: Pair, divisor: int | None) -> Affine:
    """Return the map of an average pooling, which counts its padding, behind another map."""
    path = padded(path, padding, padding)
    height, width = size
    share = 1 / (divisor or height * width)
    shape = (path.outputs, 1, height, width)
    return _behind(
        path,
        kernel=lambda: path.bias.new_full(shape, share),
        bias=torch.zeros_like(path.bias),
        size=size,
        apart=_each(lambda k: min(k - 1, 1), size),
        stride=stride,
        groups=path.outputs,
        taps=height * width,
        layers=(),
    )


def scaled(path: Affine, factor: Tensor) -> Affine:
    """Return a map times a factor, one (1,) or one a channel (O,)."""
    return replace(
        path,
        kernel=lambda: path.kernel() * factor.view(-1, 1, 1, 1),
        bias=path.bias * factor,
        macs=path.macs + path.outputs * math.prod(path.out),
    )


def shifted(path: Affine, shift: Tensor) -> Affine:
    """Return a map plus a constant, one (1,) or one a channel (O,)."""
    return replace(path, bias=path.bias + shift)


def summed(left: Affine, right: Affine) -> Affine:
    """Return the sum of two maps from one root."""
    assert left.root is right.root
    assert (left.outputs, left.out) == (right.outputs, right.out)
    if left.stride != right.stride:
        raise NotOneMapError(f"its paths have different strides: {left.stride} and {right.stride}")
    groups = math.gcd(left.groups, right.groups)
    front = _each(max, left.front, right.front)
    back = _each(max, _back(left), _back(right))
    size = _each(lambda a, b: a + b + 1, front, back)

    def kernel() -> Tensor:
        return _laid_out(left, groups, front, size) + _laid_out(right, groups, front, size)

    return replace(
        left,
        kernel=kernel,
        bias=left.bias + right.bias,
        groups=groups,
        size=size,
        front=front,
        apart=_each(math.gcd, left.apart, right.apart, _each(operator.sub, left.front, right.front)),
        layers=left.layers + right.layers,
        macs=left.macs + right.macs,
        paths=left.paths + right.paths,
    )


def as_convolution(path: Affine) -> Affine:
    """Return the same map with the padding of a convolution, equal in front and behind; zeros may widen the kernel."""
    (*_, top, height, down), (*_, left, width, right) = (_narrowest(path, axis) for axis in range(2))
    front, size = (top, left), (height, width)
    return replace(
        path,
        kernel=lambda: _laid_out(path, path.groups, front, size),
        front=front,
        size=size,
        apart=(down, right),
    )


def _narrowest(path: Affine, axis: int) -> tuple[int, int, int, int]:
    """Return taps, padding, size and spacing of the narrowest convolution that pads as a map does."""
    own, stride = path.size[axis], path.stride[axis]
    fits = []
    for before, after in itertools.product(range(stride + own), repeat=2):
        front, size = path.front[axis] + before, own + before + after
        if front >= 0 and (path.source[axis] + 2 * front - size) // stride + 1 == path.out[axis]:
            apart = math.gcd(path.apart[axis], before, after)
            fits.append(((size - 1) // max(apart, 1) + 1, front, size, apart))
    if not fits:
        raise NotOneMapError("no convolution pads as it does")
    return min(fits)


def convolution_macs(path: Affine) -> int:
    """Return the multiply-adds of the map as one convolution, for one image."""
    return math.prod(path.out) * path.outputs * (path.inputs // path.groups) * math.prod(path.taps)


def _behind(
    path: Affine,
    *,
    kernel: Callable[[], Tensor],
    bias: Tensor,
    size: Pair,
    apart: Pair,
    stride: Pair,
    groups: int,
    taps: int,
    layers: tuple[str, ...],
) -> Affine:
    """Return the map of an unpadded convolution behind another map; `taps` are the multiply-adds of one output."""
    out = _each(lambda n, k, s: (n - k) // s + 1, path.out, size, stride)
    if bool((path.bias != 0).any()):
        per_input = kernel().sum((2, 3), keepdim=True)
        bias = bias + regrouped(per_input, groups, 1)[:, :, 0, 0] @ path.bias
    return replace(
        path,
        kernel=lambda: composed(path.kernel(), path.groups, path.stride, kernel(), groups),
        bias=bias,
        groups=math.gcd(path.groups, groups),
        size=_each(lambda s, k, inner: s * (k - 1) + inner, path.stride, size, path.size),
        apart=_each(lambda own, s, gap: math.gcd(own, s * gap), path.apart, path.stride, apart),
        stride=_each(lambda a, b: a * b, path.stride, stride),
        out=out,
        layers=path.layers + layers,
        macs=path.macs + math.prod(out) * len(bias) * taps,
    )


def _laid_out(path: Affine, groups: int, front: Pair, size: Pair) -> Tensor:
    kernel = regrouped(path.kernel(), path.groups, groups)
    return embedded(kernel, _each(lambda wide, own: wide - own, front, path.front), size)


def _back(path: Affine) -> Pair:
    return _each(lambda k, a: k - 1 - a, path.size, path.front)


def _each(function: Callable[..., int], *pairs: Pair) -> Pair:
    rows, columns = zip(*pairs, strict=True)
    return function(*rows), function(*columns)


def _pair(values: Any) -> Pair:
    height, width = values
    return int(height), int(width)
