"""The branches that a merged convolution stands for, and its kernel as a function of their parameters."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from repquant.graph.affine import NotOneMapError, as_convolution
from repquant.graph.copies import copy_graph
from repquant.graph.linear_paths import Refused, paths_to

aten = torch.ops.aten

_MERGING_ERROR = 1e-5
"""Of the largest weight: what a merge in two steps, with float32 between them, may differ by from one in float64."""


def cut_out(
    graph_module: fx.GraphModule,
    root: fx.Node,
    members: Sequence[tuple[int, fx.Node]],
    earlier: Mapping[str, fx.GraphModule],
) -> fx.GraphModule:
    """Return the signed sum of nodes as a network of its own, which takes their root; it shares the layers.

    Args:
        graph_module: holds the nodes.
        root: what the nodes are maps of.
        members: (sign, node).
        earlier: name of a merged layer -> its branches, which take its place.
    """
    graph = fx.Graph()
    copies = {root: graph.placeholder("x")}
    copies[root].meta = dict(root.meta)
    held: dict[str, Any] = {}

    def hold(nodes: Sequence[fx.Node], owner: fx.GraphModule) -> None:
        names = [str(node.target) for node in nodes if node.op in ("call_module", "get_attr")]
        held.update({name: operator.attrgetter(name)(owner) for name in names})

    def copied(node: fx.Node) -> fx.Node:
        if node in copies:
            return copies[node]
        if node.op == "call_module" and str(node.target) in earlier:
            inner = earlier[str(node.target)]
            (placeholder,) = inner.graph.find_nodes(op="placeholder")
            result = graph.graph_copy(inner.graph, {placeholder: copied(node.all_input_nodes[0])})
            assert isinstance(result, fx.Node)
            hold(list(inner.graph.nodes), inner)
            copies[node] = result
        else:
            copies[node] = graph.node_copy(node, copied)
            hold([node], graph_module)
        return copies[node]

    (first_sign, first), *others = members
    total = copied(first) if first_sign == 1 else graph.call_function(aten.neg.default, (copied(first),))
    total.meta = dict(first.meta)
    for sign, node in others:
        total = graph.call_function(aten.add.Tensor if sign == 1 else aten.sub.Tensor, (total, copied(node)))
        total.meta = dict(node.meta)
    graph.output(total)
    return fx.GraphModule(held, graph)


def kernel_and_bias(branches: fx.GraphModule) -> tuple[Tensor, Tensor]:
    """Return kernel (O, I/groups, kH, kW) and bias (O,) of the convolution that the branches are equal to.

    Computed in float64 and returned in the network's dtype; gradients reach every parameter of the branches.

    Args:
        branches: from `linear.merge_with_branches`.

    Raises:
        NotOneMapError: with the parameters that they have now, they are none.
    """
    (root,) = branches.graph.find_nodes(op="placeholder")
    total = branches.graph.output_node().args[0]
    assert isinstance(total, fx.Node)
    path = paths_to(branches, total, is_inside=False)[root]
    if isinstance(path, Refused):
        raise NotOneMapError(path.reason)
    path = as_convolution(path)
    dtype = root.meta["val"].dtype
    return path.weight().to(dtype), path.bias.to(dtype)


@torch.no_grad()
def stay_one_convolution(branches: fx.GraphModule, layer: nn.Module) -> bool:
    """Whether the branches equal a layer, and are one convolution with any other values of their parameters too.

    They are not where a bias that happens to be 0 lies in front of a padding, for example.
    """
    moved = copy_graph(branches)
    generator = torch.Generator().manual_seed(0)
    for parameter in moved.parameters():
        parameter.add_(torch.rand(parameter.shape, generator=generator).to(parameter))
    try:
        kernel_and_bias(moved)
        kernel, _ = kernel_and_bias(branches)
    except NotOneMapError:
        return False
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if kernel.shape != weight.shape:
        return False
    return bool((kernel - weight).abs().max() <= _MERGING_ERROR * weight.abs().max())
