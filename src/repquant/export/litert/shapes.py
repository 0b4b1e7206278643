"""Operators that move values: where the file can, by the order of axes alone."""

from collections.abc import Sequence

import numpy as np
from torch import fx

from repquant.export.litert.scope import Scope, argument
from repquant.export.litert.values import Value, Writer
from repquant.export.litert.windows import pad
from repquant.export.refusals import unwritable
from repquant.graph.operators import aten

Result = Value | tuple[Value, ...]


def view(scope: Scope, node: fx.Node) -> Value:
    """Write the same values in another shape."""
    return scope.writer.reshaped(scope.operands(node)[0], *scope.form(node.meta["val"]))


def item(scope: Scope, node: fx.Node) -> Value:
    """Return one of the values that an operator gives."""
    values, index = scope.values[node.args[0]], node.args[1]  # type: ignore[index]
    assert isinstance(values, tuple)
    assert isinstance(index, int)
    return values[index]


def permute(scope: Scope, node: fx.Node) -> Value:
    """Give axes another order, which is kept in mind alone."""
    (value,) = scope.operands(node)
    rank = len(value.sizes)
    if node.target is aten.permute.default:
        dims = [dim % rank for dim in argument(node, "dims")]
    else:
        dims = list(range(rank))
        first, second = (0, 1) if node.target is aten.t.default else (argument(node, "dim0"), argument(node, "dim1"))
        dims[first], dims[second] = dims[second], dims[first]
    sizes, free = scope.form(node.meta["val"])
    return Value(value.tensor, sizes, tuple(dims.index(axis) for axis in value.order), free, value.grid)


def strided(scope: Scope, node: fx.Node) -> Value:
    """Write `slice`, `narrow` and `select`."""
    (value,) = scope.operands(node)
    dim = argument(node, "dim") % len(value.sizes)
    size = value.sizes[dim]
    if dim == value.free:
        raise unwritable(node, "it takes a part of the batch, which may have any size")
    if node.target is aten.slice.Tensor:
        start, end, step = slice(argument(node, "start"), argument(node, "end"), argument(node, "step")).indices(size)
        return taken(scope.writer, value, dim, range(start, end, step))
    if node.target is aten.narrow.default:
        start = argument(node, "start") % size
        return taken(scope.writer, value, dim, range(start, start + argument(node, "length")))
    index = argument(node, "index") % size
    return _without(scope, node, taken(scope.writer, value, dim, range(index, index + 1)), dim)


def index_select(scope: Scope, node: fx.Node) -> Value:
    """Write a choice of constant places."""
    (value,) = scope.operands(node)
    return taken(scope.writer, value, argument(node, "dim"), scope.constant(argument(node, "index")).tolist())


def flip(scope: Scope, node: fx.Node) -> Value:
    """Write the values in reverse."""
    (value,) = scope.operands(node)
    for dim in argument(node, "dims"):
        value = taken(scope.writer, value, dim, range(value.sizes[dim] - 1, -1, -1))
    return value


def roll(scope: Scope, node: fx.Node) -> Value:
    """Write the values moved around."""
    (value,) = scope.operands(node)
    for shift, dim in zip(argument(node, "shifts"), argument(node, "dims"), strict=True):
        places = np.roll(np.arange(value.sizes[dim]), shift)
        value = taken(scope.writer, value, dim, places.tolist())
    return value


def split(scope: Scope, node: fx.Node) -> tuple[Value, ...]:
    """Write `chunk`, `split` and `unbind` as slices."""
    (value,) = scope.operands(node)
    dim = argument(node, "dim") % len(value.sizes)
    parts, start = [], 0
    for part in node.meta["val"]:
        is_single = node.target is aten.unbind.int
        size = 1 if is_single else scope.form(part)[0][dim]
        piece = taken(scope.writer, value, dim, range(start, start + size))
        parts.append(scope.writer.reshaped(piece, *scope.form(part)) if is_single else piece)
        start += size
    return tuple(parts)


def expand(scope: Scope, node: fx.Node) -> Value:
    """Write `expand` and `repeat` as copies."""
    (value,) = scope.operands(node)
    sizes, free = scope.form(node.meta["val"])
    grown = len(sizes) - len(value.sizes)
    if grown:
        value = scope.writer.reshaped(
            value, (1,) * grown + value.sizes, None if value.free is None else value.free + grown
        )
    if free != value.free:
        raise unwritable(node, "it copies one image for a batch, which may have any size")
    times = [after // before for after, before in zip(sizes, value.sizes, strict=True)]
    if max(times) == 1:
        return value
    result = scope.writer.new(node.name, sizes, value.order, free, value.grid)
    return scope.writer.emit(
        "TILE", [value, scope.writer.indices([times[axis] for axis in value.order])], result, "TileOptions"
    )


def pad_with(scope: Scope, node: fx.Node) -> Value:
    """Write zeros, or copies of what is inside, around the values."""
    (value,) = scope.operands(node)
    given = argument(node, "pad")
    mode = argument(node, "mode") if node.target is aten.pad.default else "constant"
    rank = len(value.sizes)
    widths = [(0, 0)] * rank
    for place in range(len(given) // 2):
        widths[rank - 1 - place] = (given[2 * place], given[2 * place + 1])
    if mode == "constant" and min(given) >= 0:
        fill = argument(node, "value") or 0.0
        return pad(scope.writer, scope.writer.as_float(value) if fill else value, widths, fill)
    numpy_modes = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    if mode not in numpy_modes or min(given) < 0:
        raise unwritable(node, f"padding of mode {mode} by {list(given)} has no form in files for litert")
    for dim, width in enumerate(widths):
        if any(width):
            places = np.pad(np.arange(value.sizes[dim]), width, mode=numpy_modes[mode])  # type: ignore[call-overload]
            value = taken(scope.writer, value, dim, places.tolist())
    return value


def join(scope: Scope, node: fx.Node) -> Value:
    """Write `cat` and `stack`: on the grid of all operands, or in float where they differ or one is a constant."""
    values = [scope.given(tensor) for tensor in argument(node, "tensors")]
    dim, (sizes, free) = argument(node, "dim") % len(node.meta["val"].shape), scope.form(node.meta["val"])
    if node.target is aten.stack.default:
        values = [scope.writer.reshaped(value, (*sizes[:dim], 1, *sizes[dim + 1 :]), free) for value in values]
    grid = values[0].grid
    if any(value.grid != grid for value in values):
        values, grid = [scope.writer.as_float(value) for value in values], None
    order = values[0].order
    result = scope.writer.new(node.name, sizes, order, free, grid)
    return scope.writer.emit(
        "CONCATENATION",
        [scope.writer.ordered(value, order) for value in values],
        result,
        "ConcatenationOptions",
        1 if grid is None else 2,
        axis=order.index(dim),
    )


def shuffle(scope: Scope, node: fx.Node) -> Value:
    """Write shuffles of channels and pixels as a transposition of more axes."""
    (value,) = scope.operands(node)
    batch, channels, height, width = value.sizes
    inner: tuple[int, ...]
    order: tuple[int, ...]
    if node.target is aten.channel_shuffle.default:
        groups = argument(node, "groups")
        inner, order = (batch, groups, channels // groups, height, width), (0, 2, 1, 3, 4)
    elif node.target is aten.pixel_shuffle.default:
        factor = argument(node, "upscale_factor")
        inner, order = (batch, channels // factor**2, factor, factor, height, width), (0, 1, 4, 2, 5, 3)
    else:
        factor = argument(node, "downscale_factor")
        inner = (batch, channels, height // factor, factor, width // factor, factor)
        order = (0, 1, 3, 5, 2, 4)
    apart = scope.writer.ordered(scope.writer.reshaped(value, inner, value.free), order)
    return scope.writer.reread(apart, scope.result(node, grid=value.grid))


def taken(writer: Writer, value: Value, dim: int, places: Sequence[int]) -> Value:
    """Return the values at some places of an axis, which may be counted from the last."""
    dim %= len(value.sizes)
    if list(places) == list(range(value.sizes[dim])):
        return value
    sizes = [len(places) if axis == dim else size for axis, size in enumerate(value.sizes)]
    result = writer.new("taken", sizes, value.order, value.free, value.grid)
    place = value.order.index(dim)
    if isinstance(places, range) and places.step > 0:
        return _sliced(writer, value, result, place, places)
    version = 1 if value.grid is None else 2
    return writer.emit("GATHER", [value, writer.indices(places)], result, "GatherOptions", version, axis=place)


def _sliced(writer: Writer, value: Value, result: Value, place: int, places: range) -> Value:
    rank = len(value.sizes)
    begin, end, step = [0] * rank, [0] * rank, [1] * rank
    begin[place], end[place], step[place] = places.start, places.stop, places.step
    others = sum(1 << axis for axis in range(rank) if axis != place)  # these are taken whole
    return writer.emit(
        "STRIDED_SLICE",
        [value, *map(writer.indices, (begin, end, step))],
        result,
        "StridedSliceOptions",
        1 if value.grid is None else 2,
        beginMask=others,
        endMask=others,
    )


def _without(scope: Scope, node: fx.Node, value: Value, dim: int) -> Value:
    """Return a value without an axis of one place, in the order in which it lies."""
    order = tuple(axis - (axis > dim) for axis in value.order if axis != dim)
    return scope.writer.reread(value, scope.result(node, order, value.grid))
