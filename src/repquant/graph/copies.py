"""Copies of captured networks."""

import copy
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import fx


def copy_graph(graph: fx.GraphModule, replacements: Mapping[int, Any] = MappingProxyType({})) -> fx.GraphModule:
    """Return a deep copy of a captured network.

    Args:
        graph: from `capture`, or made from one.
        replacements: id of a module or tensor -> what takes its place in the copy.
    """
    with warnings.catch_warnings():
        # torch 2.13 copies the tree of the network's inputs by a class that it has deprecated itself.
        warnings.simplefilter("ignore", FutureWarning)
        return copy.deepcopy(graph, dict(replacements))
