"""Where windows over an image start: LiteRT knows two ways to pad, others are a PAD in front."""

import math
from collections.abc import Sequence

import numpy as np

from repquant.export.litert.values import Value, Writer
from repquant.targets.litert_file import load_schema


def is_same(sizes: Sequence[int], extents: Sequence[int], strides: Sequence[int], pads: Sequence[int]) -> bool:
    """Whether windows lie as LiteRT's SAME lays them.

    It gives ceil(size / stride) windows, and what they need beyond the image is divided, the odd place at the end.

    Args:
        sizes: of the image, (H, W).
        extents: of a window with its gaps.
        strides: of the windows.
        pads: on each side.
    """
    for size, extent, stride, pad in zip(sizes, extents, strides, pads, strict=True):
        windows = math.ceil(size / stride)
        needed = max((windows - 1) * stride + extent - size, 0)
        if (size + 2 * pad - extent) // stride + 1 != windows or needed // 2 != pad:
            return False
    return True


def padded(
    writer: Writer, image: Value, extents: Sequence[int], strides: Sequence[int], pads: Sequence[int]
) -> tuple[Value, int]:
    """Return an image for windows over it, and how their operator pads with zeros, in the schema's numbers.

    Args:
        writer: of the file.
        image: channels last.
        extents: of a window with its gaps, (H, W).
        strides: of the windows.
        pads: on each side.
    """
    padding = load_schema().Padding
    if not any(pads):
        return image, padding.VALID
    if is_same(image.sizes[2:], extents, strides, pads):
        return image, padding.SAME
    return pad(writer, image, around(pads)), padding.VALID


def around(pads: Sequence[int]) -> list[tuple[int, int]]:
    """Return the widths of a pad of an image, for each axis of (N, C, H, W)."""
    return [(0, 0), (0, 0), *((width, width) for width in pads)]


def pad(writer: Writer, value: Value, widths: Sequence[tuple[int, int]], fill: float = 0.0) -> Value:
    """Return a value with a number around it, which has to lie on the grid of the value.

    Args:
        writer: of the file.
        value: on a grid or not.
        widths: before and behind, of each axis.
        fill: the number; -inf for what no maximum takes.
    """
    sizes = [size + before + after for size, (before, after) in zip(value.sizes, widths, strict=True)]
    result = writer.new("padded", sizes, value.order, value.free, value.grid)
    places = writer.indices([widths[axis] for axis in value.order])
    version = 1 if value.grid is None else 2
    if fill == 0:
        return writer.emit("PAD", [value, places], result, "PadOptions", version)
    if value.grid is None:
        number = writer.constant("fill", np.asarray([max(fill, np.finfo(np.float32).min)], np.float32))
    else:
        assert fill == -math.inf, "another number need not lie on the grid"
        number = writer.constant_on("fill", np.asarray([-128], np.int8), value.grid)
    return writer.emit("PADV2", [value, places, number], result, "PadV2Options", version)
