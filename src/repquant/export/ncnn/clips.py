"""Clips: part of the layer in front of them, or a layer of their own."""

import math
from typing import Any

import numpy as np
from torch import fx

from repquant.graph.arguments import arguments
from repquant.graph.operators import Kind, aten, find_operator, holds_floats

_ACTIVATION, _LIMITS = 9, 10
_RELU, _CLIP = 1, 3
_LARGEST = float(np.finfo(np.float32).max)

Limits = tuple[float, float]
NO_LIMITS: Limits = (-math.inf, math.inf)


def limits_of(node: fx.Node) -> Limits:
    """Return the limits of an operator of kind CLIP; infinite where there is none."""
    if node.target is aten.relu.default:
        return 0.0, math.inf
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    given = arguments(node)
    low, high = ("min_val", "max_val") if node.target is aten.hardtanh.default else ("min", "max")
    lowest, highest = given[low], given.get(high)
    return -math.inf if lowest is None else float(lowest), math.inf if highest is None else float(highest)


def clip_behind(node: fx.Node) -> fx.Node | None:
    """Return the clip that alone reads a node's value."""
    users = [user for user in node.users if user.op == "output" or holds_floats(user)]
    row = find_operator(users[0]) if len(users) == 1 else None
    return users[0] if row is not None and row.kind is Kind.CLIP else None


def as_activation(limits: Limits) -> dict[int, Any]:
    """Return the settings of a layer that clips what it computes, in the unit in which it computes."""
    if limits == NO_LIMITS:
        return {}
    if limits == (0.0, math.inf):
        return {_ACTIVATION: _RELU}
    return {_ACTIVATION: _CLIP, _LIMITS: finite(limits)}


def finite(limits: Limits) -> tuple[float, float]:
    """Return limits that ncnn can read."""
    return max(limits[0], -_LARGEST), min(limits[1], _LARGEST)
