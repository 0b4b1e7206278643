"""Copies of captured graphs."""

import copy
import warnings
from typing import Any

from torch import fx


def copy_graph(graph: fx.GraphModule, memo: dict[int, Any] | None = None) -> fx.GraphModule:
    """Return a copy that shares nothing with a captured graph.

    Args:
        graph: from `capture`.
        memo: id of a module -> what stands for it in the copy, see `copy.deepcopy`.
    """
    with warnings.catch_warnings():
        # torch 2.13 copies the specification of the inputs through a check that it deprecates itself.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        return copy.deepcopy(graph, memo)
