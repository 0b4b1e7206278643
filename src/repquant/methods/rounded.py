"""A float network whose weights have been rounded already, by a method that looks at more than each weight alone."""

from dataclasses import dataclass

from torch import fx

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
