"""Where the error of a layer is measured: at its output, or behind what directly follows it."""

from dataclasses import dataclass

import torch
from torch import fx

from repquant.choices import Granularity
from repquant.graph.operators import layer_nodes

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class LayerEnd:
    """The value that a layer, or it and an addition, should give.

    Attributes:
        node: name of the node that has the value, before a ReLU.
        addend: position among the node's arguments of what is added to the layer's output; None for nothing.
        relu: a ReLU follows, and nothing else; the error is measured behind it.
    """

    node: str
    addend: int | None = None
    relu: bool = False


def find_ends(graph: fx.GraphModule, granularity: Granularity) -> dict[str, LayerEnd]:
    """Return where the error of each layer is measured, by the name of the layer.

    With "block" this is behind the ReLU that directly follows the layer, or the addition of its output to a value of
    the same shape that is known before the layer computes. Everywhere else it is at the layer's own output.
    """
    ends = {name: LayerEnd(node=node.name) for name, node in layer_nodes(graph).items()}
    if granularity == "block":
        position = {node: index for index, node in enumerate(graph.graph.nodes)}
        ends |= {name: end for name, node in layer_nodes(graph).items() if (end := _behind(node, position))}
    return ends


def _behind(layer: fx.Node, position: dict[fx.Node, int]) -> LayerEnd | None:
    follower = _only_user(layer)
    if follower is None:
        return None
    if _is_relu(follower):
        return LayerEnd(node=layer.name, relu=True)
    after = _only_user(follower)
    if after is None or not _is_relu(after) or not _adds(follower):
        return None
    addend = 1 - follower.args.index(layer)
    other = follower.args[addend]
    assert isinstance(other, fx.Node)
    if position[other] >= position[layer]:
        return None
    return LayerEnd(node=follower.name, addend=addend, relu=True)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_relu(node: fx.Node) -> bool:
    return node.target is aten.relu.default


def _adds(node: fx.Node) -> bool:
    """Whether a node adds two values of one shape."""
    if node.target is not aten.add.Tensor or node.kwargs:
        return False
    return all(isinstance(part, fx.Node) and part.meta["val"].shape == node.meta["val"].shape for part in node.args)
