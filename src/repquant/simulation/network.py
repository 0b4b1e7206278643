"""A captured network that computes what a runtime computes in integers."""

from collections.abc import Iterator

from torch import Tensor, fx, nn

from repquant.graph.copies import copy_graph
from repquant.graph.names import free_name
from repquant.graph.operators import Kind, find_operator, layer_nodes
from repquant.graph.plan import Plan
from repquant.simulation.integers import weight_grid
from repquant.simulation.layers import FakeQuantize, QuantizedLayer, QuantizedMatmul, quantize_layer, weight_scheme

_ROUNDING = "rounding"
_PRODUCT = "product"


def simulate(graph: fx.GraphModule, plan: Plan, *, ends: bool = True) -> fx.GraphModule:
    """Return a copy of a network that is rounded as a plan says.

    Layers become `QuantizedLayer` modules under the same name. What other operators read on a grid passes a
    `FakeQuantize` module.

    Args:
        graph: from `capture`; it is not changed.
        plan: for this network.
        ends: layers end on the grid that reads them, where it is one, as in a runtime. Without, they give their sums,
            as methods want them that look at layers or choose their integers.

    Raises:
        InputError: a bias that does not fit 32 bits.
    """
    layers = integer_layers(graph, plan)
    if ends:
        for name, step in _ends(graph, plan):
            layers[name].end_on(step)
    simulated = copy_graph(graph, {id(graph.get_submodule(name)): layer for name, layer in layers.items()})
    prefix, products = free_name(simulated, _ROUNDING), free_name(simulated, _PRODUCT)
    nodes = {node.name: node for node in simulated.graph.nodes}
    rounded: dict[str, fx.Node] = {}
    for reader, read in plan.layout.roundings.items():
        node = nodes[reader]
        if _is_matmul(node):
            _replace_matmul(simulated, node, f"{products}.{reader}", plan)
            continue
        for operand in read:
            if operand not in rounded:
                rounded[operand] = _round(simulated, nodes[operand], f"{prefix}.{operand}", plan)
            node.replace_input_with(nodes[operand], rounded[operand])
    simulated.graph.lint()
    simulated.recompile()
    return simulated


def integer_layers(graph: fx.GraphModule, plan: Plan) -> dict[str, QuantizedLayer]:
    """Return the layers of a float network that compute in integers, as they do, by name; they give their sums.

    Args:
        graph: from `capture`.
        plan: for this network.

    Raises:
        InputError: a bias that does not fit 32 bits.
    """
    return {name: _integer_layer(graph.get_submodule(name), name, plan) for name in plan.layout.layers}


def quantized_layers(simulated: nn.Module) -> dict[str, QuantizedLayer]:
    """Return the layers of a simulated network that compute in integers, by name, in the order of registration."""
    return {name: layer for name, layer in simulated.named_modules() if isinstance(layer, QuantizedLayer)}


def read_by_layers(simulated: fx.GraphModule) -> dict[str, tuple[fx.Node, ...]]:
    """Return the nodes that layers of a simulated network read, by the name of the layer, in the order of computing."""
    layers = quantized_layers(simulated)
    calls = (node for node in simulated.graph.nodes if node.op == "call_module" and node.target in layers)
    return {str(node.target): tuple(node.all_input_nodes) for node in calls}


def _integer_layer(layer: nn.Module, name: str, plan: Plan) -> QuantizedLayer:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert bias is None or isinstance(bias, Tensor)
    scheme = weight_scheme(layer, plan.weight_scheme(name))
    grid = plan.weight_grids.get(name) or weight_grid(weight, bias, plan.input_scale(name), scheme)
    return quantize_layer(layer, plan.input_grid(name), grid)


def _ends(graph: fx.GraphModule, plan: Plan) -> Iterator[tuple[str, Tensor]]:
    """Yield each layer whose output is read on one grid alone, and the scale of that.

    A clip in between changes nothing: it is monotonic, so what it gives of a rounded value rounds to the same. Left
    out are layers that runtimes compute in float, or add the bias to in float: transposed convolutions, and products of
    more than rows.
    """
    for name, node in layer_nodes(graph).items():
        layer = graph.get_submodule(name)
        is_rows = isinstance(layer, nn.Linear) and node.meta["val"].ndim == 2
        if name in plan.layout.layers and (is_rows or isinstance(layer, nn.Conv1d | nn.Conv2d)):
            grids = set(_grids_of_readers(node, plan))
            if len(grids) == 1 and (grid := grids.pop()) is not None:
                yield name, plan.grids[grid].scale


def _grids_of_readers(node: fx.Node, plan: Plan) -> Iterator[str | None]:
    """Yield the names of the tensors as which a value is read; None for a reader of floats."""
    for user in node.users:
        row = find_operator(user)
        is_layer = user.op == "call_module" and user.target in plan.layout.layers
        if is_layer or node.name in plan.layout.roundings.get(user.name, ()):
            yield plan.layout.tensor_of(node.name).name
        elif row is not None and row.kind in (Kind.CLIP, Kind.VIEW):
            yield from _grids_of_readers(user, plan)
        else:
            yield None


def _is_matmul(node: fx.Node) -> bool:
    row = find_operator(node)
    return row is not None and row.kind is Kind.MATMUL


def _replace_matmul(graph: fx.GraphModule, node: fx.Node, name: str, plan: Plan) -> None:
    left, right = node.args[:2]
    assert isinstance(left, fx.Node)
    assert isinstance(right, fx.Node)
    graph.add_submodule(name, QuantizedMatmul(plan.grid_of(left.name), plan.grid_of(right.name)))
    node.op, node.target, node.args, node.kwargs = "call_module", name, (left, right), {}


def _round(graph: fx.GraphModule, node: fx.Node, name: str, plan: Plan) -> fx.Node:
    graph.add_submodule(name, FakeQuantize(plan.grid_of(node.name)))
    with graph.graph.inserting_after(node):
        rounded = graph.graph.call_module(name, (node,))
    rounded.meta = dict(node.meta)
    return rounded
