"""A float network whose weights have been rounded already, by a method that looks at more than each weight alone."""

from dataclasses import dataclass, replace

import torch
from torch import fx

from repquant.graph.copies import copy_graph
from repquant.graph.plan import Plan
from repquant.simulation.network import simulate


@dataclass(frozen=True)
class Rounded:
    """What a simulation needs to find the integers that a rounding method chose.

    Attributes:
        graph: copy of the float network; weights of rounded layers lie on their grids, biases may have changed.
        plan: with the grids of these weights.
    """

    graph: fx.GraphModule
    plan: Plan

    def simulated(self) -> fx.GraphModule:
        """Return the network in integers."""
        return simulate(self.graph, self.plan)


@torch.no_grad()
def with_float_layers(rounded: Rounded, graph: fx.GraphModule, plan: Plan) -> Rounded:
    """Return what was rounded, with layers that stay in float after all as they were before.

    The others keep the integers that were chosen when these layers were rounded too.

    Args:
        rounded: from a rounding method; it is not changed.
        graph: what it was made from.
        plan: for the same network with more layers in float.
    """
    layers = plan.layout.layers
    restored = copy_graph(rounded.graph)
    for name in rounded.plan.layout.layers.keys() - layers.keys():
        restored.get_submodule(name).load_state_dict(graph.get_submodule(name).state_dict())
    grids = {name: grid for name, grid in rounded.plan.weight_grids.items() if name in layers}
    return Rounded(restored, replace(plan, weight_grids=grids))
