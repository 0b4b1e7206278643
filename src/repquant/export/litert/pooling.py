"""Operators over windows of an image or over whole axes, and changes of its size."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from repquant.export.litert.clips import NO_CLIP, Clip, fused
from repquant.export.litert.flat_file import Quantization
from repquant.export.litert.scope import Scope, argument
from repquant.export.litert.values import Value
from repquant.export.litert.windows import around, is_same, pad, padded
from repquant.export.refusals import unwritable
from repquant.graph.operators import aten
from repquant.targets.litert_file import load_schema


def max_pool(scope: Scope, node: fx.Node) -> Value:
    """Write a maximum over windows; the grid stays."""
    image = scope.image(scope.operands(node)[0])
    kernel, stride, pads = _windows(node)
    if any(gap != 1 for gap in argument(node, "dilation")):
        raise unwritable(node, "windows with gaps have no form in files for litert")
    _require_floor(scope, node, image, kernel, stride, pads)
    padding = load_schema().Padding.SAME
    if not is_same(image.sizes[2:], kernel, stride, pads):
        image = pad(scope.writer, image, around(pads), -math.inf) if any(pads) else image
        padding = load_schema().Padding.VALID
    return _pool(scope, node, "MAX_POOL_2D", image, kernel, stride, padding)


def average_pool(scope: Scope, node: fx.Node, _clip: Clip, grid: Quantization | None) -> Value:
    """Write an average over windows.

    In integers it is a depthwise convolution with ones: LiteRT's own operator would put the average on the grid of what
    it reads.
    """
    source = scope.operands(node)[0]
    kernel, stride, pads = _windows(node)
    image = scope.image(source)
    _require_floor(scope, node, image, kernel, stride, pads)
    factor = _divisor(node, image, kernel, stride, pads)
    if grid is not None and image.grid is not None and factor is None:
        image, padding = padded(scope.writer, image, kernel, stride, pads)
        return _averaged(scope, node, image, kernel, stride, padding, grid)
    image = scope.writer.as_float(image)
    if any(pads):  # LiteRT's own padding is not counted
        image = pad(scope.writer, image, around(pads))
    average = _pool(scope, node, "AVERAGE_POOL_2D", image, kernel, stride, load_schema().Padding.VALID)
    if factor is None:
        return average
    rank = len(average.sizes)
    shape = [factor.shape[axis - rank] if axis >= rank - 2 else 1 for axis in average.order]
    counted = scope.writer.constant("windows", factor.reshape(shape))
    result = scope.writer.like(node.name, average)
    return scope.writer.emit("MUL", [average, counted], result, "MulOptions", fusedActivationFunction=0)


def adaptive_average(scope: Scope, node: fx.Node, _clip: Clip, grid: Quantization | None) -> Value:
    """Write averages to a given size: of everything, or of windows of one size."""
    source = scope.operands(node)[0]
    if grid is None or source.grid is None:
        source, grid = scope.writer.as_float(source), None
    image = scope.image(source)
    size = _output_size(node)
    if size == (1, 1):
        result = scope.image_result(node, grid)
        return scope.from_image(node, _reduced(scope, "MEAN", image, (2, 3), result, keeps=True))
    kernel, padding = _divided(node, image, size), load_schema().Padding.VALID
    if grid is None:
        return _pool(scope, node, "AVERAGE_POOL_2D", image, kernel, kernel, padding)
    return _averaged(scope, node, image, kernel, kernel, padding, grid)


def adaptive_maximum(scope: Scope, node: fx.Node) -> tuple[Value, ...]:
    """Write maxima to a given size; the grid stays. The second value of the operator, their places, can't be read."""
    image = scope.image(scope.operands(node)[0])
    values = next(user for user in node.users if user.args[1] == 0)
    size = _output_size(node)
    if size == (1, 1):
        result = scope.image_result(values, image.grid)
        return (_reduced(scope, "REDUCE_MAX", image, (2, 3), result, keeps=True),)
    kernel = _divided(node, image, size)
    return (_pool(scope, values, "MAX_POOL_2D", image, kernel, kernel, load_schema().Padding.VALID),)


def mean(scope: Scope, node: fx.Node, _clip: Clip, grid: Quantization | None) -> Value:
    """Write a mean over axes."""
    source = scope.operands(node)[0]
    if grid is None or source.grid is None:
        source, grid = scope.writer.as_float(source), None
    return _over_axes(scope, node, "MEAN", source, grid)


def maximum(scope: Scope, node: fx.Node) -> Value:
    """Write a maximum over axes; the grid stays."""
    source = scope.operands(node)[0]
    return _over_axes(scope, node, "REDUCE_MAX", source, source.grid)


def nearest(scope: Scope, node: fx.Node) -> Value:
    """Write another size with the nearest value at each place; the grid stays."""
    image = scope.image(scope.operands(node)[0])
    is_centered = "exact" in str(node.target)
    result = scope.image_result(node, image.grid)
    version = 3 if is_centered else 1 if image.grid is None else 2
    size = scope.writer.indices(result.sizes[2:])
    scope.writer.emit(
        "RESIZE_NEAREST_NEIGHBOR",
        [image, size],
        result,
        "ResizeNearestNeighborOptions",
        version,
        alignCorners=False,
        halfPixelCenters=is_centered,
    )
    return scope.from_image(node, result)


def bilinear(scope: Scope, node: fx.Node, _clip: Clip, _grid: Quantization | None) -> Value:
    """Write another size with values in between, in float: LiteRT's integers stay on the grid that they are read on."""
    image = scope.image(scope.writer.as_float(scope.operands(node)[0]))
    has_corners = argument(node, "align_corners")
    result = scope.image_result(node)
    return scope.writer.emit(
        "RESIZE_BILINEAR",
        [image, scope.writer.indices(result.sizes[2:])],
        result,
        "ResizeBilinearOptions",
        1 if has_corners else 3,
        alignCorners=has_corners,
        halfPixelCenters=not has_corners,
    )


def _over_axes(scope: Scope, node: fx.Node, kind: str, source: Value, grid: Quantization | None) -> Value:
    dims = argument(node, "dim")
    rank = len(source.sizes)
    dims = sorted(dim % rank for dim in dims) if dims else list(range(rank))
    if source.free in dims:
        raise unwritable(node, "it reduces the batch")
    keeps = argument(node, "keepdim")
    remaining = [axis for axis in range(rank) if axis not in dims]
    order = source.order if keeps else [remaining.index(axis) for axis in source.order if axis in remaining]
    return _reduced(scope, kind, source, dims, scope.result(node, order, grid), keeps=keeps)


def _reduced(scope: Scope, kind: str, source: Value, dims: Any, result: Value, *, keeps: bool) -> Value:
    places = scope.writer.indices(sorted(source.order.index(dim) for dim in dims))
    version = 1 if source.grid is None else 2
    return scope.writer.emit(kind, [source, places], result, "ReducerOptions", version, keepDims=keeps)


def _pool(scope: Scope, node: fx.Node, kind: str, image: Value, kernel: Any, stride: Any, padding: int) -> Value:
    result = scope.image_result(node, image.grid)
    scope.writer.emit(
        kind,
        [image],
        result,
        "Pool2DOptions",
        1 if image.grid is None else 2,
        padding=padding,
        strideH=stride[0],
        strideW=stride[1],
        filterHeight=kernel[0],
        filterWidth=kernel[1],
        fusedActivationFunction=fused(NO_CLIP, None)[0],
    )
    return scope.from_image(node, result)


def _averaged(
    scope: Scope, node: fx.Node, image: Value, kernel: Any, stride: Any, padding: int, grid: Quantization
) -> Value:
    channels, taps = image.sizes[1], kernel[0] * kernel[1]
    assert image.grid is not None
    file = scope.writer.file
    scale = np.asarray([1 / taps], np.float32)
    ones = file.constant("ones", np.ones((1, *kernel, channels), np.int8), scale=scale, axis=3)
    zeros = file.constant("zeros", np.zeros(channels, np.int32), scale=image.grid.scales * scale)
    result = scope.image_result(node, grid)
    scope.writer.emit(
        "DEPTHWISE_CONV_2D",
        [image, ones, zeros],
        result,
        "DepthwiseConv2DOptions",
        3,
        padding=padding,
        strideH=stride[0],
        strideW=stride[1],
        dilationHFactor=1,
        dilationWFactor=1,
        depthMultiplier=1,
        fusedActivationFunction=fused(NO_CLIP, grid)[0],
    )
    return scope.from_image(node, result)


def _output_size(node: fx.Node) -> tuple[int, int]:
    size = argument(node, "output_size")
    return (size[0], size[1]) if len(size) == 2 else (1, size[0])


def _divided(node: fx.Node, image: Value, size: tuple[int, int]) -> tuple[int, int]:
    """Return the windows that an image falls into."""
    height, width = image.sizes[2:]
    if height % size[0] or width % size[1]:
        raise unwritable(node, f"{height} x {width} can't be divided into {size[0]} x {size[1]} windows of one size")
    return height // size[0], width // size[1]


def _divisor(node: fx.Node, image: Value, kernel: Any, stride: Any, pads: Any) -> NDArray[np.float32] | None:
    """Return what averages that count all places are multiplied by, (H, W); None where that is 1 everywhere."""
    taps = kernel[0] * kernel[1]
    divisor = argument(node, "divisor_override") if node.target is aten.avg_pool2d.default else None
    if divisor is not None:
        return np.full((1, 1), taps / divisor, np.float32)
    if argument(node, "count_include_pad") or not any(pads):
        return None
    counts = [
        [min(start + extent, size) - max(start, 0) for start in range(-pad_width, size + pad_width - extent + 1, step)]
        for size, extent, step, pad_width in zip(image.sizes[2:], kernel, stride, pads, strict=True)
    ]
    rows, columns = (np.asarray(count, np.float32) for count in counts)
    factors: NDArray[np.float32] = np.float32(taps) / np.outer(rows, columns)
    return factors


def _windows(node: fx.Node) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return kernel, strides and padding as (H, W)."""
    kernel = argument(node, "kernel_size")
    stride = argument(node, "stride") or kernel
    is_line = "1d" in str(node.target)

    def of_image(values: Any, first: int) -> tuple[int, int]:
        values = list(values)
        if is_line:
            return first, values[0]
        return values[0], values[-1]

    return of_image(kernel, 1), of_image(stride, 1), of_image(argument(node, "padding"), 0)


def _require_floor(scope: Scope, node: fx.Node, image: Value, kernel: Any, stride: Any, pads: Any) -> None:
    """Refuse windows that begin within the padding at the end."""
    expected = [
        (size + 2 * pad - extent) // step + 1
        for size, extent, step, pad in zip(image.sizes[2:], kernel, stride, pads, strict=True)
    ]
    sizes = scope.form(node.meta["val"])[0][2:]
    if list(sizes) != expected[-len(sizes) :]:
        raise unwritable(node, "windows that begin in the padding (ceil_mode) have no form in files for litert")
