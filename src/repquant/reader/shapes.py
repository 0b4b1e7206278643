"""Operators that move values: other shapes, parts, and parts put together."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from repquant.errors import InputError
from repquant.reader.values import Known, MaybeKnown, Value, integers, shape_of

_PAD_MODES = {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}


def _reshape(x: Tensor, shape: Known, *, allowzero: int = 0) -> Tensor:
    sizes = integers(shape)
    if not allowzero:
        sizes = [x.shape[place] if size == 0 else size for place, size in enumerate(sizes)]
    return torch.reshape(x, sizes)


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    if axis == 1:
        return torch.flatten(x, 1)
    axis = axis % x.ndim if axis < 0 else axis
    return torch.reshape(x, (math.prod(x.shape[:axis]), -1))


def _squeeze(x: Tensor, axes: MaybeKnown = None) -> Tensor:
    if axes is None:
        return torch.squeeze(x)
    return torch.squeeze(x, tuple(integers(axes)))


def _unsqueeze(x: Tensor, axes: Known) -> Tensor:
    rank = x.ndim + axes.size
    for axis in sorted(axis % rank for axis in integers(axes)):
        x = torch.unsqueeze(x, axis)
    return x


def _transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return torch.permute(x, list(perm or reversed(range(x.ndim))))


def _expand(x: Tensor, shape: Known) -> Tensor:
    sizes = integers(shape)
    own = [1] * (len(sizes) - x.ndim) + list(x.shape)
    sizes = [1] * (x.ndim - len(sizes)) + sizes
    return x.expand([mine if size == 1 else size for mine, size in zip(own, sizes, strict=True)])


def _tile(x: Tensor, repeats: Known) -> Tensor:
    return x.repeat(integers(repeats))


def _concatenation(*inputs: Tensor, axis: int) -> Tensor:
    return torch.cat(inputs, axis)


def _split(
    x: Tensor, split: MaybeKnown = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int
) -> tuple[Tensor, ...]:
    if split is not None:
        return torch.split(x, integers(split), axis)
    return torch.split(x, -(-x.shape[axis] // (num_outputs or outputs)), axis)


def _slice(x: Tensor, starts: Known, ends: Known, axes: MaybeKnown = None, steps: MaybeKnown = None) -> Tensor:
    chosen = range(starts.size) if axes is None else integers(axes)
    strides = [1] * starts.size if steps is None else integers(steps)
    for axis, start, end, step in zip(chosen, integers(starts), integers(ends), strides, strict=True):
        if step > 0:
            x = torch.ops.aten.slice.Tensor(x, axis, start, end, step)
            continue
        places = range(x.shape[axis])[start : None if end < -x.shape[axis] else end : step]
        x = torch.index_select(x, axis, torch.tensor(list(places), device=x.device))
    return x


def _gather(x: Value, indices: Value, *, axis: int = 0) -> Tensor:
    """Take whole slices: one, some in a row, or as many as a tensor of indices names."""
    assert isinstance(x, Tensor)
    if isinstance(indices, np.ndarray):
        if indices.ndim == 0:
            return torch.select(x, axis, integers(indices)[0])
        indices = torch.as_tensor(indices.astype(np.int64), device=x.device)
    assert indices is not None
    size = x.shape[axis]
    indices = torch.where(indices < 0, indices + size, indices)
    if axis == 0 and x.ndim == 2:
        return F.embedding(indices, x)
    taken = torch.index_select(x, axis, indices.reshape(-1))
    axis %= x.ndim
    return taken if indices.ndim == 1 else torch.unflatten(taken, axis, list(indices.shape))


def _gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def _gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    if batch_dims:
        raise InputError("it takes other values of each image (batch_dims), which is not supported")
    return x[tuple(torch.unbind(indices, -1))]


def _pad(
    x: Tensor, pads: Known, value: MaybeKnown = None, axes: MaybeKnown = None, *, mode: str = "constant"
) -> Tensor:
    sizes = integers(pads)
    count = len(sizes) // 2
    widths = [(0, 0)] * x.ndim
    for place, axis in enumerate(range(x.ndim) if axes is None else integers(axes)):
        widths[axis] = (sizes[place], sizes[place + count])
    while len(widths) > 1 and widths[0] == (0, 0):
        del widths[0]
    flat = [width for pair in reversed(widths) for width in pair]
    if mode == "constant":
        return F.pad(x, flat, value=0.0 if value is None else value.item())
    return F.pad(x, flat, mode=_PAD_MODES[mode])


def _depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    channels, height, width = x.shape[1:]
    fewer = channels // blocksize**2
    x = torch.reshape(x, (-1, blocksize, blocksize, fewer, height, width))
    return torch.reshape(torch.permute(x, (0, 3, 4, 1, 5, 2)), (-1, fewer, height * blocksize, width * blocksize))


def _space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    channels, height, width = x.shape[1], x.shape[2] // blocksize, x.shape[3] // blocksize
    x = torch.reshape(x, (-1, channels, height, blocksize, width, blocksize))
    return torch.reshape(torch.permute(x, (0, 3, 5, 1, 2, 4)), (-1, channels * blocksize**2, height, width))


def _constant_of_shape(shape: Known, *, value: Any = None, device: torch.device) -> Tensor:
    filled = np.zeros(1, np.float32) if value is None else value
    return torch.full(integers(shape), filled.item(), dtype=torch.tensor(filled).dtype, device=device)


def _range(start: Known, limit: Known, delta: Known, *, device: torch.device) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), device=device)


def _resize(
    x: Tensor,
    roi: MaybeKnown = None,
    scales: MaybeKnown = None,
    sizes: MaybeKnown = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    if antialias or exclude_outside or keep_aspect_ratio_policy != "stretch":
        raise InputError("it resizes with smoothing, without the border or to a kept ratio, which is not supported")
    if mode == "cubic" and abs(cubic_coeff_a + 0.75) > 1e-6:
        raise InputError(f"its cubic_coeff_a is {cubic_coeff_a:g}; allowed is -0.75, which torch has")
    given = sizes if sizes is not None and sizes.size else scales
    assert given is not None
    numbers = given.tolist()
    if axes is None:
        axes = range(x.ndim)
    unchanged = [1.0] * x.ndim if given is scales else list(x.shape)
    asked = list(unchanged)
    for axis, number in zip(axes, numbers, strict=True):
        asked[axis] = number
    fixed = slice(1 if given is sizes else 0, 2)  # nobody resizes a batch, but sizes name that of the export
    if asked[fixed] != unchanged[fixed]:
        raise InputError("it resizes the batch or the channels; only height and width can be")
    factors = [new / old for new, old in zip(asked[2:], unchanged[2:], strict=True)]
    how = _interpolation(mode, coordinate_transformation_mode, nearest_mode, x.ndim - 2, factors)
    how["size" if given is sizes else "scale_factor"] = asked[2:]
    return F.interpolate(x, **how)


def _interpolation(mode: str, place: str, nearest: str, rank: int, factors: Sequence[float]) -> dict[str, Any]:
    """Return how torch calls what a Resize asks for.

    Raises:
        InputError: torch has no such interpolation.
    """
    if mode == "nearest":
        is_whole = all(factor >= 1 and factor == int(factor) for factor in factors)
        if (place, nearest) == ("asymmetric", "floor") or (
            is_whole and place == "half_pixel" and nearest in ("round_prefer_floor", "round_prefer_ceil")
        ):
            return {"mode": "nearest"}
        if (place, nearest) == ("half_pixel", "round_prefer_ceil"):
            return {"mode": "nearest-exact"}
    kinds = {("linear", 1): "linear", ("linear", 2): "bilinear", ("cubic", 2): "bicubic"}
    if (mode, rank) in kinds and place in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return {"mode": kinds[mode, rank], "align_corners": place == "align_corners"}
    raise InputError(
        f"it resizes with mode {mode}, coordinates {place} and rounding {nearest}, which torch has not; allowed are "
        "nearest with asymmetric and floor or with half_pixel and round_prefer_ceil (round_prefer_floor by whole "
        "factors), and linear or cubic with half_pixel or align_corners"
    )


SHAPES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "Concat": _concatenation,
        "ConstantOfShape": _constant_of_shape,
        "DepthToSpace": _depth_to_space,
        "Expand": _expand,
        "Flatten": _flatten,
        "Gather": _gather,
        "GatherElements": _gather_elements,
        "GatherND": _gather_nd,
        "Pad": _pad,
        "Range": _range,
        "Reshape": _reshape,
        "Resize": _resize,
        "Shape": lambda x, *, start=0, end=None: shape_of(x)[start:end],
        "Slice": _slice,
        "SpaceToDepth": _space_to_depth,
        "Split": _split,
        "Squeeze": _squeeze,
        "Tile": _tile,
        "Transpose": _transpose,
        "Unsqueeze": _unsqueeze,
    }
)
