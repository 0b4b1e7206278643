"""The operators between layers: in float, with int8 values where ncnn moves these right."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from repquant.export.ncnn.clips import finite, limits_of
from repquant.export.ncnn.values import Scope, Value, sizes_of
from repquant.export.refusals import unwritable
from repquant.graph.arguments import arguments
from repquant.graph.operators import aten

Write = Callable[[Scope, fx.Node], Value]

_MAXIMUM, _AVERAGE = 0, 1
_CUTS_OFF = 1  # how windows at the end are taken: only those that lie inside with their padding
_BINARY: Mapping[Any, int] = {
    aten.add.Tensor: 0,
    aten.add.Scalar: 0,
    aten.sub.Tensor: 1,
    aten.sub.Scalar: 1,
    aten.mul.Tensor: 2,
    aten.mul.Scalar: 2,
    aten.div.Tensor: 3,
    aten.div.Scalar: 3,
    aten.rsub.Scalar: 7,
}
_SIXTH = {0: 1 / 6, 1: 0.5}
_FUNCTIONS: Mapping[Any, tuple[str, Mapping[int, float]]] = {
    aten.sigmoid.default: ("Sigmoid", {}),
    aten.silu.default: ("Swish", {}),
    aten.hardswish.default: ("HardSwish", _SIXTH),
    aten.hardsigmoid.default: ("HardSigmoid", _SIXTH),
    aten.tanh.default: ("TanH", {}),
    aten.mish.default: ("Mish", {}),
}


def write_binary(scope: Scope, node: fx.Node) -> Value:
    """Write a sum, difference, product or quotient of two values, or of one and a number."""
    given = arguments(node)
    left, right = node.args[:2]
    if given.get("alpha", 1) != 1 or not isinstance(left, fx.Node) or left not in scope.values:
        raise unwritable(node, "only operands of factor 1, the first one no constant, are written to files for ncnn")
    if isinstance(right, int | float):
        settings = {0: _BINARY[node.target], 1: 1, 2: float(right)}
        return scope.writer.emit("BinaryOp", node.name, scope.floats(node), sizes_of(node), settings)
    if not isinstance(right, fx.Node) or right not in scope.values:
        raise unwritable(node, "an operand that is a constant tensor is not written to files for ncnn")
    values = [scope.writer.as_float(scope.values[side]) for side in (left, right)]
    if len({len(value.sizes) for value in values}) > 1:
        raise unwritable(node, "operands of different numbers of axes are not written to files for ncnn")
    return scope.writer.emit("BinaryOp", node.name, values, sizes_of(node), {0: _BINARY[node.target]})


def write_function(scope: Scope, node: fx.Node) -> Value:
    """Write a function of each value."""
    kind, settings = _FUNCTIONS[node.target]
    return scope.writer.emit(kind, node.name, scope.floats(node), sizes_of(node), settings)


def write_leaky_relu(scope: Scope, node: fx.Node) -> Value:
    """Write a ReLU with a slope below zero."""
    settings = {0: float(arguments(node)["negative_slope"])}
    return scope.writer.emit("ReLU", node.name, scope.floats(node), sizes_of(node), settings)


def write_elu(scope: Scope, node: fx.Node) -> Value:
    """Write a function that tends to a number below zero."""
    given = arguments(node)
    if (given["scale"], given["input_scale"]) != (1, 1):
        raise unwritable(node, "scales of its own are not written to files for ncnn")
    return scope.writer.emit("ELU", node.name, scope.floats(node), sizes_of(node), {0: float(given["alpha"])})


def write_softmax(scope: Scope, node: fx.Node) -> Value:
    """Write a softmax along an axis."""
    sizes = sizes_of(node)
    settings = {0: _axis(node, len(sizes)), 1: 1}  # the second one: the axis is counted as written
    return scope.writer.emit("Softmax", node.name, scope.floats(node), sizes, settings)


def write_clip(scope: Scope, node: fx.Node) -> Value:
    """Write a clip by itself."""
    low, high = finite(limits_of(node))
    return scope.writer.emit("Clip", node.name, scope.floats(node), sizes_of(node), {0: low, 1: high})


def write_view(scope: Scope, node: fx.Node) -> Value:
    """Write the same values in another shape."""
    (value,) = scope.operands(node)
    sizes = sizes_of(node)
    if math.prod(sizes) != math.prod(value.sizes):
        raise unwritable(node, "views that move values between images are not written to files for ncnn")
    return scope.writer.reshaped(value, sizes, node.name)


def write_parts(scope: Scope, node: fx.Node) -> Value:
    """Write nothing for a split: each of its parts, which may not be read, is a layer of its own."""
    return scope.operands(node)[0]


def write_part(scope: Scope, node: fx.Node) -> Value:
    """Write one part of a split."""
    split, index = node.args
    if not isinstance(split, fx.Node) or not isinstance(index, int) or OPERATORS.get(split.target) is not write_parts:
        raise unwritable(node, "a choice among results is not written to files for ncnn, but for parts of a split")
    axis = _axis(split, len(sizes_of(node)))
    lengths = [part.shape[axis + 1] for part in split.meta["val"]]
    start = sum(lengths[:index])
    return _cropped(scope, node, scope.values[split], axis, start, start + lengths[index])


def write_slice(scope: Scope, node: fx.Node) -> Value:
    """Write a range of places along an axis."""
    given, (value,) = arguments(node), scope.operands(node)
    axis = _axis(node, len(value.sizes))
    length = value.sizes[axis]
    if given.get("step", 1) != 1:
        raise unwritable(node, "steps over places are not written to files for ncnn")
    start, _, _ = slice(given["start"], None).indices(length)
    return _cropped(scope, node, value, axis, start, start + sizes_of(node)[axis])


def write_pad(scope: Scope, node: fx.Node) -> Value:
    """Write zeros around images."""
    given = arguments(node)
    widths = [*given["pad"], 0, 0, 0, 0][:4]
    is_constant = given.get("mode", "constant") == "constant"
    if not is_constant or given["value"] or len(given["pad"]) > 4 or min(widths) < 0 or len(sizes_of(node)) != 3:
        raise unwritable(node, "only zeros around images are written to files for ncnn")
    settings = {0: widths[2], 1: widths[3], 2: widths[0], 3: widths[1]}
    return scope.writer.emit("Padding", node.name, scope.floats(node), sizes_of(node), settings)


def write_nearest(scope: Scope, node: fx.Node) -> Value:
    """Write images that are larger by whole factors, with the nearest value at each place."""
    (value,), sizes = scope.floats(node), sizes_of(node)
    if any(size % old for size, old in zip(sizes[1:], value.sizes[1:], strict=True)):
        raise unwritable(node, "factors that are not whole are not written to files for ncnn")
    return scope.writer.emit("Interp", node.name, [value], sizes, {0: 1, 3: sizes[1], 4: sizes[2]})


def write_concat(scope: Scope, node: fx.Node) -> Value:
    """Write values side by side: in int8 along channels where all are on one grid, else in float."""
    tensors, sizes = arguments(node)["tensors"], sizes_of(node)
    if any(tensor not in scope.values for tensor in tensors):
        raise unwritable(node, "a constant beside values is not written to files for ncnn")
    values = [scope.values[tensor] for tensor in tensors]
    axis, steps = _axis(node, len(sizes)), {value.step for value in values}
    if sum(value.sizes[axis] for value in values) != sizes[axis]:
        raise unwritable(node, "values whose sizes do not add up are not written to files for ncnn")
    if len(steps) > 1 or axis > 0:
        values, steps = [scope.writer.as_float(value) for value in values], {None}
    return scope.writer.emit("Concat", node.name, values, sizes, {0: axis}, step=steps.pop())


def write_pool(scope: Scope, node: fx.Node) -> Value:
    """Write maxima or averages of windows."""
    given = arguments(node)
    is_maximum = node.target is aten.max_pool2d.default
    kernel, pads = _pair(given["kernel_size"]), _pair(given["padding"])
    stride = _pair(given["stride"]) if given["stride"] else kernel
    if given["ceil_mode"] or given.get("divisor_override") or _pair(given.get("dilation", 1)) != (1, 1):
        raise unwritable(
            node, "windows with gaps, a divisor of their own or `ceil_mode` are not written to files for ncnn"
        )
    settings = {0: _MAXIMUM if is_maximum else _AVERAGE, 1: kernel[1], 11: kernel[0], 2: stride[1], 12: stride[0]}
    settings |= {3: pads[1], 13: pads[0], 5: _CUTS_OFF}
    settings |= {} if is_maximum else {6: int(given["count_include_pad"])}
    return scope.writer.emit("Pooling", node.name, scope.floats(node), sizes_of(node), settings)


def write_adaptive_average(scope: Scope, node: fx.Node) -> Value:
    """Write averages of as many windows as are asked for."""
    height, width = sizes_of(node)[1:]
    if (height, width) == (1, 1):
        return _whole(scope, node, _AVERAGE)
    settings = {0: _AVERAGE, 7: 1, 8: width, 18: height}
    return scope.writer.emit("Pooling", node.name, scope.floats(node), sizes_of(node), settings)


def write_reduction(scope: Scope, node: fx.Node) -> Value:
    """Write the mean or the maximum of an image (C, H, W) along H and W."""
    (value,) = scope.operands(node)
    dims = arguments(node)["dim"]
    dims = [dims] if isinstance(dims, int) else dims or []
    if len(value.sizes) != 3 or sorted(dim % 4 for dim in dims) != [2, 3]:
        raise unwritable(node, "only means and maxima along both axes of an image are written to files for ncnn")
    return _whole(scope, node, _AVERAGE if node.target is aten.mean.dim else _MAXIMUM)


def _whole(scope: Scope, node: fx.Node, kind: int) -> Value:
    """Write a pooling of whole images, whose result is a row."""
    (value,) = scope.floats(node)
    row = scope.writer.emit("Pooling", node.name, [value], value.sizes[:1], {0: kind, 4: 1})
    return scope.writer.reshaped(row, sizes_of(node), f"{node.name}_image")


def _cropped(scope: Scope, node: fx.Node, value: Value, axis: int, start: int, end: int) -> Value:
    settings = {9: [start], 10: [end], 11: [axis]}
    return scope.writer.emit("Crop", node.name, [scope.writer.as_float(value)], sizes_of(node), settings)


def _axis(node: fx.Node, rank: int) -> int:
    """Return the axis that an operator works along, without the images.

    Raises:
        InputError: it is that of the images.
    """
    dim: int = arguments(node)["dim"] % (rank + 1)
    if dim == 0:
        raise unwritable(node, "operators along the images are not written to files for ncnn")
    return dim - 1


def _pair(value: Any) -> tuple[int, int]:
    """Return sizes for (H, W), of which a single one is for both."""
    sizes = (value,) if isinstance(value, int) else tuple(value)
    return sizes[0], sizes[-1]


OPERATORS: Mapping[Any, Write] = {
    **dict.fromkeys(_BINARY, write_binary),
    **dict.fromkeys(_FUNCTIONS, write_function),
    aten.leaky_relu.default: write_leaky_relu,
    aten.elu.default: write_elu,
    aten.softmax.int: write_softmax,
    **dict.fromkeys((aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default), write_parts),
    operator.getitem: write_part,
    **dict.fromkeys((aten.slice.Tensor, aten.narrow.default), write_slice),
    **dict.fromkeys((aten.pad.default, aten.constant_pad_nd.default), write_pad),
    **dict.fromkeys((aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default), write_nearest),
    **dict.fromkeys(
        (
            aten.view.default,
            aten.reshape.default,
            aten._unsafe_view.default,
            aten.flatten.using_ints,
            aten.unflatten.int,
            aten.squeeze.default,
            aten.squeeze.dim,
            aten.squeeze.dims,
            aten.unsqueeze.default,
        ),
        write_view,
    ),
    aten.cat.default: write_concat,
    **dict.fromkeys((aten.max_pool2d.default, aten.avg_pool2d.default), write_pool),
    aten.adaptive_avg_pool2d.default: write_adaptive_average,
    **dict.fromkeys((aten.mean.dim, aten.amax.default), write_reduction),
}
