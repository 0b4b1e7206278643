"""Activations that only clip: part of the operator in front of them, as far as the file can say so."""

import math
from dataclasses import dataclass

import numpy as np
from torch import fx

from repquant.export.litert.flat_file import Quantization
from repquant.export.litert.scope import argument
from repquant.export.litert.values import Value, Writer
from repquant.graph.operators import aten
from repquant.targets.litert_file import load_schema

_LOWEST, _HIGHEST = -128, 127


@dataclass(frozen=True)
class Clip:
    """Limits of a value; infinite where there is none."""

    low: float = -math.inf
    high: float = math.inf

    @property
    def name(self) -> str | None:
        """Name of the fused activation that does this; None where there is none."""
        names = {(-math.inf, math.inf): "NONE", (0, math.inf): "RELU", (0, 6): "RELU6", (-1, 1): "RELU_N1_TO_1"}
        return names.get((self.low, self.high))


NO_CLIP = Clip()


def clip_of(node: fx.Node) -> Clip:
    """Return the limits of an operator of kind CLIP."""
    if node.target is aten.relu.default:
        return Clip(low=0)
    if node.target is aten.relu6.default:
        return Clip(0, 6)
    low, high = ("min_val", "max_val") if node.target is aten.hardtanh.default else ("min", "max")
    has_high = node.target is not aten.clamp_min.default
    lowest, highest = argument(node, low), argument(node, high) if has_high else None
    return Clip(-math.inf if lowest is None else lowest, math.inf if highest is None else highest)


def fused(clip: Clip, grid: Quantization | None) -> tuple[int, Clip]:
    """Return the fused activation in the schema's numbers, and what is left to do behind the operator.

    Nothing is left where the grid ends at the limits or within, as rounding and clipping are monotonic.
    """
    activations = load_schema().ActivationFunctionType
    if clip.name is not None:
        return getattr(activations, clip.name), NO_CLIP
    if grid is not None and _is_within(grid, clip):
        return activations.NONE, NO_CLIP
    return activations.NONE, clip


def clipped(writer: Writer, value: Value, clip: Clip) -> Value:
    """Return a value within limits, on the same grid or in float."""
    if value.grid is None and clip.name == "RELU":
        return writer.emit("RELU", [value], writer.like("relu", value))
    limits = (("MAXIMUM", clip.low), ("MINIMUM", clip.high))
    for kind, limit in limits:
        if math.isinf(limit):
            continue
        if value.grid is None:
            bound = writer.constant("limit", np.full((1,) * len(value.sizes), limit, np.float32))
        else:
            steps = min(max(value.grid.steps(limit), _LOWEST), _HIGHEST)
            bound = writer.constant_on("limit", np.full((1,) * len(value.sizes), steps, np.int8), value.grid)
        version = 1 if value.grid is None else 2
        result = writer.like("clipped", value, value.grid)
        value = writer.emit(kind, [value, bound], result, "MaximumMinimumOptions", version)
    return value


def _is_within(grid: Quantization, clip: Clip) -> bool:
    low = -math.inf if math.isinf(clip.low) else grid.steps(clip.low)
    high = math.inf if math.isinf(clip.high) else grid.steps(clip.high)
    return low <= _LOWEST and high >= _HIGHEST
