"""The one thing that says how a network is quantized for a target: where it is rounded, and on which grids."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from repquant.errors import InputError
from repquant.graph.layout import Layout
from repquant.numerics.affine import Grid, Scheme, grid_for_range
from repquant.targets.target import Target

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Grids for every rounded tensor of a network, and for the weights that have one already.

    Attributes:
        target: the runtime and its schemes.
        layout: where the network is rounded.
        grids: tensor name -> grid.
        weight_grids: layer name -> grid of its weight; a layer without one gets that of its largest weights.
        weight_bits: layer name -> bits of its weight; a layer without an entry has those of the target.
    """

    target: Target
    layout: Layout
    grids: Mapping[str, Grid]
    weight_grids: Mapping[str, Grid] = field(default_factory=dict)
    weight_bits: Mapping[str, int] = field(default_factory=dict)

    def input_grid(self, layer: str) -> Grid:
        """Return the grid of what a layer reads."""
        return self.grids[self.layout.layers[layer]]

    def input_scale(self, layer: str) -> Tensor:
        """Return the scale () of what a layer reads."""
        return self.input_grid(layer).scale

    def weight_scheme(self, layer: str) -> Scheme:
        """Return the scheme of a layer's weight: the target's, with the layer's own bits where it has them."""
        scheme = self.target.weight
        return replace(scheme, bits=self.weight_bits.get(layer, scheme.bits))

    def grid_of(self, node: str) -> Grid:
        """Return the grid that a node's value lies on where it is read as integers."""
        return self.grids[self.layout.tensor_of(node).name]


def make_plan(layout: Layout, ranges: Mapping[str, Range | Grid], target: Target) -> Plan:
    """Return the plan for ranges, or grids, of the rounded tensors.

    Args:
        layout: from `find_layout` for the same target.
        ranges: tensor name -> (low, high), or a grid.
        target: the schemes.

    Raises:
        InputError: a tensor without a range.
    """
    if missing := sorted(set(layout.tensors) - set(ranges)):
        described = ", ".join(layout.tensors[name].description for name in missing)
        raise InputError(f"no activation range for {described}; calibrate the same network for the same target")
    grids = {}
    for name in layout.tensors:
        given = ranges[name]
        grids[name] = given if isinstance(given, Grid) else grid_for_range(*given, target.activation)
    return Plan(target=target, layout=layout, grids=grids)
