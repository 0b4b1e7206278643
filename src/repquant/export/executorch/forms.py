"""Operators in the forms that XNNPACK has kernels for; what they compute stays the same."""

from typing import Any

from torch import fx

from repquant.graph.arguments import arguments
from repquant.graph.operators import Kind, aten, find_operator
from repquant.simulation.layers import QuantizedConv1d, QuantizedConvTranspose1d


def in_known_forms(graph: fx.GraphModule) -> None:
    """Rewrite the operators of a simulated network, in place.

    Clips become ReLU or hardtanh, with which layers end. Means over images keep their axes, and a view drops them.
    Largest values of images are maxima over axes. Layers on lines (N, C, L) stand between views to images (N, C, 1, L)
    and back.
    """
    for node in list(graph.graph.nodes):
        if node.op == "call_module":
            if isinstance(graph.get_submodule(str(node.target)), QuantizedConv1d | QuantizedConvTranspose1d):
                _on_images(graph.graph, node)
        elif node.target is aten.mean.dim:
            _keep_axes(graph.graph, node)
        elif node.target is aten.adaptive_max_pool2d.default and list(node.args[1]) == [1, 1]:
            _as_maximum(graph.graph, node)
        elif node.op == "call_function":
            _name_clip(node)


def _on_images(graph: fx.Graph, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    with graph.inserting_before(node):
        image = _view(graph, aten.unflatten.int, (source, 1, [source.meta["val"].shape[1], 1]), source)
    node.update_arg(0, image)
    with graph.inserting_after(node):
        line = _view(graph, aten.flatten.using_ints, (node, 1, 2), node)
    node.replace_all_uses_with(line, delete_user_cb=lambda user: user is not line)


def _keep_axes(graph: fx.Graph, node: fx.Node) -> None:
    """Write a mean of (N, C, H, W) to (N, C) as one to (N, C, 1, 1) and a view."""
    given = arguments(node)
    source, axes = node.args[0], given["dim"]
    assert isinstance(source, fx.Node)
    if source.meta["val"].ndim != 4 or given["keepdim"] or sorted(axis % 4 for axis in axes or ()) != [2, 3]:
        return
    node.args, node.kwargs = (source, [-2, -1], True), {}
    with graph.inserting_after(node):
        rows = _view(graph, aten.flatten.using_ints, (node, 1), node)
    node.replace_all_uses_with(rows, delete_user_cb=lambda user: user is not rows)


def _as_maximum(graph: fx.Graph, node: fx.Node) -> None:
    """Write an adaptive pooling to (N, C, 1, 1), which gives places too, as the maximum alone; nobody may ask where."""
    if any(user.args[1] != 0 for user in node.users):
        return
    node.target, node.args = aten.amax.default, (node.args[0], [-2, -1], True)
    for user in list(node.users):
        node.meta = dict(user.meta)
        user.replace_all_uses_with(node)
        graph.erase_node(user)


def _view(graph: fx.Graph, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
    view = graph.call_function(target, args)
    view.meta = dict(like.meta)
    return view


def _name_clip(node: fx.Node) -> None:
    row = find_operator(node)
    if row is None or row.kind is not Kind.CLIP or node.target is aten.relu.default:
        return
    names = ("min_val", "max_val") if node.target is aten.hardtanh.default else ("min", "max")
    low, high = (0, 6) if node.target is aten.relu6.default else map(arguments(node).get, names)
    if low == 0 and high is None:
        node.target, node.args, node.kwargs = aten.relu.default, node.args[:1], {}
    elif isinstance(low, int | float) and isinstance(high, int | float):
        node.target, node.args, node.kwargs = aten.hardtanh.default, (node.args[0], low, high), {}
