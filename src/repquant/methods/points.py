"""The places of a network that compute with integers, each in the forms that another network may have there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.func import functional_call

from repquant.graph.alternatives import Compute
from repquant.graph.grouping import TransposedConvolution
from repquant.graph.operators import KEEPS_GRID, Kind, find_operator, layer_nodes
from repquant.graph.plan import Plan
from repquant.methods.layer_positions import Convolution
from repquant.methods.rounded import Rounded
from repquant.simulation.integers import IntegerParameters
from repquant.simulation.layers import FakeQuantize, QuantizedLayer, QuantizedMatmul
from repquant.simulation.network import integer_layers


@dataclass(frozen=True, kw_only=True)
class Point:
    """A layer or operator that computes with integers, and functions that compute it in other forms.

    Attributes:
        name: of the layer, or of the operator's node.
        node: name of the node.
        kind: "conv3x3", "linear", or the name of the operator.
        operands: names of the nodes that it reads rounded.
        integers: of a layer.
        in_float: nothing is rounded.
        in_integers: what it computes in the quantized network.
        activations: only what it reads is rounded.
        weights: only its weights and biases are; an operator has none.
    """

    name: str
    node: str
    kind: str
    operands: tuple[str, ...]
    integers: IntegerParameters | None
    in_float: Compute
    in_integers: Compute
    activations: Compute
    weights: Compute


def find_points(graph: fx.GraphModule, rounded: Rounded) -> tuple[Point, ...]:
    """Return the places of a network that compute with integers, in the order of computing.

    Operators that only move or join values are none: they round nothing that their readers do not.

    Args:
        graph: from `capture`.
        rounded: the same network, rounded.
    """
    layers = integer_layers(rounded.graph, rounded.plan)
    by_node = {node.name: name for name, node in layer_nodes(graph).items() if name in layers}
    points = []
    for node in graph.graph.nodes:
        if node.name in by_node:
            name = by_node[node.name]
            points.append(_layer(graph, node, name, layers[name]))
        elif node.name in rounded.plan.layout.roundings:
            row = find_operator(node)
            assert row is not None
            if row.kind not in KEEPS_GRID:
                points.append(_operator(node, rounded.plan, is_product_of_matrices=row.kind is Kind.MATMUL))
    return tuple(points)


def _layer(graph: fx.GraphModule, node: fx.Node, name: str, quantized: QuantizedLayer) -> Point:
    layer, integers = graph.get_submodule(name), quantized.integers
    bias = integers.float_bias()
    parameters = {"weight": integers.float_weight()} | ({} if bias is None else {"bias": bias})
    return Point(
        name=name,
        node=node.name,
        kind=_kind(layer),
        operands=(node.all_input_nodes[0].name,),
        integers=integers,
        in_float=layer,
        in_integers=quantized,
        activations=lambda x: layer(quantized.input(x)),
        weights=lambda x: functional_call(layer, parameters, (x,)),
    )


def _kind(layer: nn.Module) -> str:
    if isinstance(layer, nn.Linear):
        return "linear"
    name = "conv-transpose" if isinstance(layer, TransposedConvolution) else "conv"
    assert isinstance(layer, Convolution | TransposedConvolution)
    return name + "x".join(map(str, layer.kernel_size))


def _operator(node: fx.Node, plan: Plan, *, is_product_of_matrices: bool) -> Point:
    read = plan.layout.roundings[node.name]
    grids = {
        place: plan.grid_of(argument.name)
        for place, argument in enumerate(node.args)
        if isinstance(argument, fx.Node) and argument.name in read
    }
    function: Compute = node.target  # type: ignore[assignment]
    on_grids = _rounding(function, {place: FakeQuantize(grid) for place, grid in grids.items()})
    return Point(
        name=node.name,
        node=node.name,
        kind=str(function._schema.name).rpartition("::")[2],  # type: ignore[attr-defined]
        operands=read,
        integers=None,
        in_float=function,
        in_integers=QuantizedMatmul(grids[0], grids[1]) if is_product_of_matrices else on_grids,
        activations=on_grids,
        weights=function,
    )


def _rounding(function: Compute, quantizers: Mapping[int, FakeQuantize]) -> Compute:
    def compute(*args: Any, **kwargs: Any) -> Any:
        rounded = [
            quantizers[place](argument) if place in quantizers else argument for place, argument in enumerate(args)
        ]
        return function(*rounded, **kwargs)

    return compute
