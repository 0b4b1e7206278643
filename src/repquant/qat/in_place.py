"""Fewer passes over memory in a training step."""

import torch
from torch import fx

from repquant.graph.operators import LAYERS
from repquant.qat.layer import QatLayer

aten = torch.ops.aten

_OVERWRITABLE = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor})
"""Their backward passes need what they read, not what they gave."""


def relu_in_place(network: fx.GraphModule) -> fx.GraphModule:
    """Let each ReLU overwrite what a layer, a sum or a product has computed for it alone. Returns `network`."""
    for node in network.graph.find_nodes(op="call_function", target=aten.relu.default):
        producer = node.args[0]
        assert isinstance(producer, fx.Node)
        if len(producer.users) == 1 and _is_overwritable(network, producer):
            node.target = aten.relu_.default
    network.recompile()
    return network


def _is_overwritable(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), (QatLayer, *LAYERS))
    return node.target in _OVERWRITABLE
